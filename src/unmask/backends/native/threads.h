/* Threads that share one piece of work at a time, wait for each other inside it, and stay awake for a moment after it.

   A pass takes milliseconds and meets hundreds of times, so waiting means spinning; a runtime that puts threads to
   sleep there (libgomp does where a process has other threads) takes several times as long. */

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

#define SPINS 20000 /* a fraction of a millisecond: then others may have the core, or the thread sleeps */

static __thread struct { int id, count; } crew = {0, 1}; /* this thread's number in the work, and of how many */

static struct {
    pthread_mutex_t caller, sleep;
    pthread_cond_t wake;
    atomic_int round, done, asleep, arrived, phase;
    int count, active; /* threads, settled by the first work of more than one; those that the work is for */
    pid_t owner;
    void (*work)(void *);
    void *job;
} pool = {.caller = PTHREAD_MUTEX_INITIALIZER, .sleep = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static inline void pause_or_yield(int spins) {
    if (spins < SPINS) _mm_pause();
    else sched_yield();
}

/* Waits until all threads of the work have come here. */
static void meet(void) {
    if (crew.count == 1) return;
    const int phase = atomic_load_explicit(&pool.phase, memory_order_acquire);
    if (atomic_fetch_add_explicit(&pool.arrived, 1, memory_order_acq_rel) == crew.count - 1) {
        atomic_store_explicit(&pool.arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&pool.phase, phase + 1, memory_order_release);
        return;
    }
    for (int n = 0; atomic_load_explicit(&pool.phase, memory_order_acquire) == phase; n += n < SPINS) pause_or_yield(n);
}

static void *worker(void *number) {
    crew.id = (int)(intptr_t)number;
    for (int seen = 0;;) {
        int n = 0;
        while (atomic_load_explicit(&pool.round, memory_order_acquire) == seen && n++ < SPINS) _mm_pause();
        if (atomic_load(&pool.round) == seen) {
            pthread_mutex_lock(&pool.sleep);
            atomic_fetch_add(&pool.asleep, 1);
            while (atomic_load(&pool.round) == seen) pthread_cond_wait(&pool.wake, &pool.sleep);
            atomic_fetch_sub(&pool.asleep, 1);
            pthread_mutex_unlock(&pool.sleep);
        }
        seen++;
        crew.count = pool.active;
        if (crew.id < crew.count) pool.work(pool.job);
        atomic_fetch_add_explicit(&pool.done, 1, memory_order_release);
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
static void together(void (*work)(void *), void *job, int count) {
    if (count < 2) {
        crew.id = 0, crew.count = 1;
        work(job);
        return;
    }
    pthread_mutex_lock(&pool.caller);
    if (pool.owner != getpid()) start(count);
    pool.active = count < pool.count ? count : pool.count;
    crew.id = 0, crew.count = pool.active;
    pool.work = work, pool.job = job;
    atomic_store(&pool.done, 0);
    atomic_fetch_add(&pool.round, 1);
    if (atomic_load(&pool.asleep)) {
        pthread_mutex_lock(&pool.sleep);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.sleep);
    }
    work(job);
    for (int n = 0; atomic_load_explicit(&pool.done, memory_order_acquire) < pool.count - 1; n += n < SPINS)
        pause_or_yield(n);
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
