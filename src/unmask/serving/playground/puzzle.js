// Number puzzles: what the prompt holds as a grid, and what a search says of it.

const BLANKS = ".0_*?";
const MOST_STEPS = 20000; // of a search

/** Whether the digits of a grid are those of a sudoku: each once in every row, column and box. */
export function isPuzzle(grid) {
  return Boolean(grid) && grid[0] === grid[1] && grid[0] <= 9 && grid[2] * grid[3] === grid[0];
}

/** For each cell the others of its row, column and box; `grid`: rows, columns, and those of a box. */
function peersOf([rows, columns, high, wide]) {
  const places = Array.from({ length: rows * columns }, (_, cell) => [Math.floor(cell / columns), cell % columns]);
  const near = ([r, c], [s, d]) => r === s || c === d || (Math.floor(r / high) === Math.floor(s / high) && Math.floor(c / wide) === Math.floor(d / wide));
  return places.map((own, cell) => places.flatMap((other, peer) => (peer !== cell && near(own, other) ? [peer] : [])));
}

/** A puzzle's cells, null where one is blank; throws where the text is no such grid. */
export function read(text, grid) {
  const [rows, columns] = grid;
  const cells = [...text.replace(/[\s|+-]/g, "")].map((mark) => (BLANKS.includes(mark) ? null : mark));
  const strange = cells.find((cell) => cell !== null && !(cell >= 1 && cell <= columns));
  if (strange) throw new Error(`A puzzle holds digits 1 to ${columns} and dots, not “${strange}”.`);
  if (cells.length !== rows * columns) throw new Error(`This puzzle has ${rows * columns} cells, the prompt ${cells.length}; write a dot for each blank.`);
  return cells;
}

function solutions(cells, peers, columns, most, effort) {
  if (!effort.left--) throw new Error("Whether this puzzle has one solution takes too long to find out; add givens.");
  let [best, options] = [0, null];
  for (let cell = 0; cell < cells.length && !(options?.length < 2); cell++) {
    if (cells[cell] !== null) continue;
    const used = new Set(peers[cell].map((peer) => cells[peer]));
    const free = Array.from({ length: columns }, (_, digit) => `${digit + 1}`).filter((digit) => !used.has(digit));
    if (!options || free.length < options.length) [best, options] = [cell, free];
  }
  if (!options) return [cells.join("")];
  const found = [];
  for (const digit of options) {
    if (found.length < most) found.push(...solutions(cells.with(best, digit), peers, columns, most - found.length, effort));
  }
  return found;
}

/** The one solution of a puzzle; throws where its givens clash, where it has none, and where it has several. */
export function solution(cells, grid) {
  const peers = peersOf(grid);
  const place = (cell) => `row ${Math.floor(cell / grid[1]) + 1}, column ${(cell % grid[1]) + 1}`;
  cells.forEach((digit, cell) => {
    const twin = digit && peers[cell].find((peer) => cells[peer] === digit);
    if (twin) throw new Error(`The givens clash: ${digit} stands in ${place(cell)} and in ${place(twin)}.`);
  });
  const found = solutions(cells, peers, grid[1], 2, { left: MOST_STEPS });
  if (found.length !== 1) throw new Error(found.length ? "This puzzle has more than one solution; add givens." : "This puzzle has no solution.");
  return found[0];
}
