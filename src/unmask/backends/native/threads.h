/* Threads that share one piece of work at a time and wait for each other inside it.

   A pass takes milliseconds and meets hundreds of times, so a thread that waits spins for a moment. Then it sleeps: a core
   that others want is better left to them. Where others keep the cores, meeting costs more than a second thread gives; the
   thread that called then sends the others away in the middle of the work, works alone for a while, and tries company
   again now and then. */

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

#define SPINS 3000   /* some 50 microseconds */
#define MOST_ALONE 256 /* pieces of work done alone before the next try */
#define LATE 2000000   /* nanoseconds of waiting that are never reason enough to go on alone */

static __thread struct { int id, count; } crew = {0, 1}; /* this thread's number in the work, and of how many */

typedef struct { int alone, penalty; } Company; /* of one kind of work: pieces yet to be done alone, and how many next time */

static struct {
    pthread_mutex_t caller;
    atomic_int round, done, asleep, arrived, phase;
    int count, active; /* threads, settled by the first work of more than one; those that the work is for */
    int leave;         /* all but the caller are to leave where they next meet */
    int64_t begun, waited; /* nanoseconds: when the work began, and how long the caller waited for others since */
    pid_t owner;
    void (*work)(void *);
    void *job;
} pool = {.caller = PTHREAD_MUTEX_INITIALIZER};

static inline int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb"); /* as long as the other's pause; `yield` takes no time */
#endif
}

#ifdef __linux__
static void sleep_while(atomic_int *number, int old) {
    while (atomic_load(number) == old) syscall(SYS_futex, number, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
}

static void wake(atomic_int *number) { syscall(SYS_futex, number, FUTEX_WAKE_PRIVATE, 1 << 30, NULL, NULL, 0); }
#else
static pthread_mutex_t bed = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t bell = PTHREAD_COND_INITIALIZER;

static void sleep_while(atomic_int *number, int old) {
    pthread_mutex_lock(&bed);
    while (atomic_load(number) == old) pthread_cond_wait(&bell, &bed);
    pthread_mutex_unlock(&bed);
}

static void wake(atomic_int *number) {
    (void)number; /* all look whether theirs has changed */
    pthread_mutex_lock(&bed);
    pthread_cond_broadcast(&bell);
    pthread_mutex_unlock(&bed);
}
#endif

/* Returns once a number is no longer `old`. */
static void await_change(atomic_int *number, int old) {
    for (int n = 0; n < SPINS; n++) {
        if (atomic_load_explicit(number, memory_order_acquire) != old) return;
        pause_briefly();
    }
    atomic_fetch_add(&pool.asleep, 1);
    sleep_while(number, old);
    atomic_fetch_sub(&pool.asleep, 1);
}

static void change(atomic_int *number) {
    atomic_fetch_add(number, 1);
    if (atomic_load(&pool.asleep)) wake(number);
}

/* Whether `n` threads take longer for what takes this long, waiting included, than one would: n times what it computed. */
static inline int too_long(int64_t waited, int64_t taken, int n) { return waited * n > taken * (n - 1); }

/* Waits until all threads of the work have come here. Whether this one is to leave it: the rest is done by fewer. */
static int meet(void) {
    if (crew.count == 1) return 0;
    if (!crew.id && pool.waited > LATE && too_long(pool.waited, now() - pool.begun, crew.count)) pool.leave = 1;
    const int phase = atomic_load_explicit(&pool.phase, memory_order_acquire);
    if (atomic_fetch_add_explicit(&pool.arrived, 1, memory_order_acq_rel) == crew.count - 1) {
        atomic_store_explicit(&pool.arrived, 0, memory_order_relaxed);
        if (pool.leave) pool.active = 1;
        change(&pool.phase);
    } else {
        const int64_t start = crew.id ? 0 : now();
        await_change(&pool.phase, phase);
        if (!crew.id) pool.waited += now() - start;
    }
    crew.count = pool.active;
    return crew.id >= crew.count;
}

static void *worker(void *number) {
    crew.id = (int)(intptr_t)number;
    for (int seen = 0;; seen++) {
        await_change(&pool.round, seen);
        crew.count = pool.active;
        if (crew.id < crew.count) pool.work(pool.job);
        change(&pool.done);
    }
    return 0;
}

static void start(int count) {
    pool.owner = getpid(); /* a fork has none of its parent's threads */
    atomic_store(&pool.round, 0), atomic_store(&pool.asleep, 0), atomic_store(&pool.arrived, 0);
    pool.count = count;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    for (int i = 1; i < count; i++) {
        pthread_t thread;
        if (pthread_create(&thread, &attributes, worker, (void *)(intptr_t)i)) {
            if (i == 1) pool.count = 1; /* none to be had */
            else abort();               /* those that run count on it */
        }
    }
    pthread_attr_destroy(&attributes);
}

/* Runs work(job) in up to `count` threads, this one among them, and waits for all; calls from several threads take turns. */
static void together(void (*work)(void *), void *job, int count, Company *company) {
    if (count > 1) pthread_mutex_lock(&pool.caller);
    const int alone = count < 2 || company->alone > 0;
    if (alone) {
        if (count > 1) company->alone--, pthread_mutex_unlock(&pool.caller);
        crew.id = 0, crew.count = 1;
        work(job);
        return;
    }
    if (pool.owner != getpid()) start(count);
    const int n = pool.active = count < pool.count ? count : pool.count;
    crew.id = 0, crew.count = n;
    pool.work = work, pool.job = job, pool.waited = 0, pool.leave = 0, pool.begun = now();
    atomic_store(&pool.done, 0);
    change(&pool.round);
    work(job);
    const int64_t ready = now();
    for (int done; (done = atomic_load_explicit(&pool.done, memory_order_acquire)) < pool.count - 1;)
        await_change(&pool.done, done);
    const int64_t end = now();
    if (pool.leave || too_long(pool.waited + end - ready, end - pool.begun, n)) {
        company->penalty = company->penalty ? company->penalty * 2 : 4;
        if (company->penalty > MOST_ALONE) company->penalty = MOST_ALONE;
        company->alone = company->penalty;
    } else company->penalty /= 2;
    pthread_mutex_unlock(&pool.caller);
}

/* The first and last + 1 of this thread's share of `count` pieces. */
static inline void share_of(int count, int *first, int *last) {
    *first = (int)((int64_t)count * crew.id / crew.count), *last = (int)((int64_t)count * (crew.id + 1) / crew.count);
}

#define EACH(i, count) \
    int first_##i, last_##i; \
    share_of(count, &first_##i, &last_##i); \
    for (int i = first_##i; i < last_##i; i++)
