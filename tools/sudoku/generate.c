/* Sudoku puzzles with exactly one solution, one a line: 81 characters of the puzzle ('.' is blank), a space, 81 of its
 * solution.
 *
 *   cc -O2 -o generate tools/sudoku/generate.c
 *   ./generate COUNT SEED FEWEST MOST       givens of each puzzle are drawn from FEWEST..MOST, uniformly
 *
 * A random full grid is dug out in random order as long as the solution stays the only one. Digging that ends with
 * more givens than were drawn starts again from a new grid. Puzzles of different seeds are independent. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t state;
static long steps; /* left to a search before it is given up */

static uint32_t draw(uint32_t below) {
    state += 0x9e3779b97f4a7c15u; /* splitmix64 */
    uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return (uint32_t)((z >> 32) * below >> 32);
}

typedef struct {
    uint16_t row[9], column[9], box[9]; /* bits of the digits that are used */
    uint8_t cell[81];
} Grid;

static int box_of(int i) { return i / 27 * 3 + i % 9 / 3; }

static void put(Grid *g, int i, int digit) {
    uint16_t bit = 1u << digit;
    g->row[i / 9] |= bit;
    g->column[i % 9] |= bit;
    g->box[box_of(i)] |= bit;
    g->cell[i] = (uint8_t)digit;
}

static void take(Grid *g, int i) {
    uint16_t keep = (uint16_t)~(1u << g->cell[i]);
    g->row[i / 9] &= keep;
    g->column[i % 9] &= keep;
    g->box[box_of(i)] &= keep;
    g->cell[i] = 0;
}

/* Counts solutions up to `most`; the last one found stays in *found. With `shuffle` digits are tried in random order. */
static int solve(Grid *g, int most, Grid *found, int shuffle) {
    int best = -1, fewest = 10;
    uint16_t options = 0;
    if (--steps < 0) return 0;
    for (int i = 0; i < 81; i++) {
        if (g->cell[i]) continue;
        uint16_t free = 0x3fe & (uint16_t)~(g->row[i / 9] | g->column[i % 9] | g->box[box_of(i)]);
        int count = __builtin_popcount(free);
        if (count < fewest) {
            best = i;
            fewest = count;
            options = free;
            if (count < 2) break;
        }
    }
    if (best < 0) {
        *found = *g;
        return 1;
    }
    int total = 0, first = shuffle ? (int)draw(9) : 0;
    for (int k = 0; k < 9 && total < most; k++) {
        int digit = 1 + (first + k) % 9;
        if (!(options & (1u << digit))) continue;
        put(g, best, digit);
        total += solve(g, most - total, found, shuffle);
        take(g, best);
    }
    return total;
}

static void full_grid(Grid *out) {
    for (;;) {
        Grid g;
        memset(&g, 0, sizeof g);
        for (int tries = 0; tries < 11; tries++) { /* random clues first, so that grids differ everywhere */
            int i = (int)draw(81);
            if (g.cell[i]) continue;
            int digit = 1 + (int)draw(9);
            uint16_t used = g.row[i / 9] | g.column[i % 9] | g.box[box_of(i)];
            if (used & (1u << digit)) continue;
            put(&g, i, digit);
        }
        steps = 2000;
        if (solve(&g, 1, out, 1)) return;
    }
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: generate COUNT SEED FEWEST MOST\n");
        return 2;
    }
    long count = atol(argv[1]);
    state = strtoull(argv[2], NULL, 10) * 0xd1342543de82ef95u + 1;
    int fewest = atoi(argv[3]), most = atoi(argv[4]);
    if (count < 1 || fewest < 17 || most > 80 || fewest > most) {
        fprintf(stderr, "generate: COUNT must be at least 1 and 17 <= FEWEST <= MOST <= 80\n");
        return 2;
    }
    long histogram[81] = {0};
    for (long n = 0; n < count;) {
        int wanted = fewest + (int)draw((uint32_t)(most - fewest + 1));
        Grid solution, puzzle, other;
        full_grid(&solution);
        puzzle = solution;
        int order[81], givens = 81;
        for (int i = 0; i < 81; i++) order[i] = i;
        for (int i = 80; i > 0; i--) {
            int j = (int)draw((uint32_t)i + 1), held = order[i];
            order[i] = order[j];
            order[j] = held;
        }
        for (int k = 0; k < 81 && givens > wanted; k++) {
            int i = order[k], digit = puzzle.cell[i];
            take(&puzzle, i);
            steps = 20000;
            if (solve(&puzzle, 2, &other, 0) == 1 && steps >= 0) givens--;
            else put(&puzzle, i, digit);
        }
        if (givens != wanted) continue;
        char line[165];
        for (int i = 0; i < 81; i++) {
            line[i] = puzzle.cell[i] ? (char)('0' + puzzle.cell[i]) : '.';
            line[82 + i] = (char)('0' + solution.cell[i]);
        }
        line[81] = ' ';
        line[163] = '\n';
        fwrite(line, 1, 164, stdout);
        histogram[wanted]++;
        n++;
    }
    fprintf(stderr, "puzzles by givens:");
    for (int i = 17; i < 81; i++)
        if (histogram[i]) fprintf(stderr, " %d:%ld", i, histogram[i]);
    fprintf(stderr, "\n");
    return 0;
}
