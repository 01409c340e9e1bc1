//! The inside of a product of real numbers: rows packed block by block, and each block multiplied by one panel after the
//! other.

use std::ops::Range;

use super::Isa;
use super::live::{Live, Skip};
use super::matrix::{Matrix, MatrixMut};
use super::pack::pack;
use super::panels::{Step, Strips, pack_panel};
use super::real::Real;
use super::tail::{Fused, padded, store};
use super::tiles::{MAX_ROWS, NEAR_BYTES, PANEL, Tiles, share};

/// A block of packed input stays below this many bytes, so that it lives in the second-level cache.
const BLOCK_BYTES: usize = 512 * 1024;

/// Part of a panel, where processors with a small second-level cache take the terms of a sum in several parts.
const PART_BYTES: usize = 128 * 1024;

/// So many bytes of weights come from memory, in order: for one row, to leave out some of them disturbs more than it saves; for more,
/// the next are fetched meanwhile.
const FAR_BYTES: usize = 8 << 20;

/// Sums of a tile on their way from registers to memory.
pub(super) type Sums<F> = [[F; PANEL]; MAX_ROWS];

/// Packs one block of rows after the other, and multiplies each.
#[expect(clippy::too_many_arguments)]
pub(super) fn blocks<F: Real>(
    isa: Isa,
    x: Matrix<'_, F>,
    mut steps: Steps<'_, F>,
    add: Add<'_, F>,
    activation: Fused,
    mut y: MatrixMut<'_, F>,
    skip: Skip,
    memory: &mut Vec<F>,
    live: &mut Live,
    sums: &mut Sums<F>,
) {
    let (rows, depth, tile_rows) = (x.rows(), x.columns(), F::tile_rows(isa));
    // Sums that are added to the result have no place to wait in, and few rows would wait for longer than they save.
    let parts = if small_cache(isa) && rows > tile_rows && !matches!(add, Add::Result) {
        (depth * size_of::<Step<F>>()).div_ceil(PART_BYTES).max(1)
    } else {
        1
    };
    let part = depth.div_ceil(parts);
    // At least so many rows that the panels pay which `product` packs for each block, or a cache further away sends.
    let least = if matches!(steps, Steps::Loose(..)) { 128 } else { 512 / size_of::<F>() };
    let block = (BLOCK_BYTES / (size_of::<F>() * part.max(1))).max(least).next_multiple_of(tile_rows);
    let far = matches!(&steps, Steps::Packed(all) if size_of_val(*all) > FAR_BYTES);
    for first in (0..rows).step_by(block) {
        let count = block.min(rows - first);
        for index in 0..parts {
            let terms = (index * part).min(depth)..((index + 1) * part).min(depth);
            let (resume, last) = (index > 0, index + 1 == parts);
            memory.resize(memory.len().max(count * terms.len()), F::default());
            live.clear();
            for tile in Tiles::new(count, tile_rows) {
                let rows = x.row_range(first + tile.start, tile.len()).column_range(terms.start, terms.len());
                let packed = &mut memory[tile.start * terms.len()..tile.end * terms.len()];
                pack(isa, rows, packed, tile.len());
                if skip == Skip::Rows && !(far && tile.len() == 1) {
                    live.add(isa, packed, tile.len());
                }
            }
            let packed = &memory[..count * terms.len()];
            let (add, activation) = if last { (add, activation) } else { (Add::Nothing, Fused::Identity) };
            let (steps, live, y) = (&mut steps, &mut *live, y.reborrow());
            let job = Job {
                isa,
                packed,
                depth,
                terms,
                resume,
                first,
                count,
                tile_rows,
                steps,
                add,
                activation,
                y,
                skip,
                live,
                sums,
            };
            F::run(isa, job);
        }
    }
}

/// Whether a panel of the longest sums and a block of rows do not fit into the second-level cache, which has half a megabyte on many
/// processors without AVX-512.
fn small_cache(isa: Isa) -> bool {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(_) => true,
        _ => false,
    }
}

/// A block of packed rows to be multiplied by some panels.
pub struct Job<'j, 's, F> {
    isa: Isa,
    packed: &'j [F],
    depth: usize,
    /// The `k` of the terms that it adds, of all `depth`.
    terms: Range<usize>,
    /// Whether the result holds the sums of the terms before.
    resume: bool,
    /// First row of the block.
    first: usize,
    /// Its rows.
    count: usize,
    tile_rows: usize,
    steps: &'j mut Steps<'s, F>,
    add: Add<'j, F>,
    activation: Fused,
    y: MatrixMut<'j, F>,
    skip: Skip,
    live: &'j mut Live,
    sums: &'j mut Sums<F>,
}

/// The panels of a product.
pub(super) enum Steps<'s, F> {
    /// One after the other.
    Packed(&'s [Step<F>]),
    /// Weights yet to be packed, and the memory for one panel.
    Loose(Matrix<'s, F>, &'s mut [Step<F>]),
}

/// A panel as a tile reads it; not every set fetches ahead.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))]
pub(super) struct Panel<'p, F> {
    pub(super) strips: Strips<'p, F>,
    /// The `k` that matter, if not all do.
    pub(super) live: Option<&'p [u32]>,
    /// The share of this tile in the next panel: to be fetched while it computes.
    pub(super) next: Option<Strips<'p, F>>,
    /// Whether sums go on from what they hold; they begin with zero otherwise.
    pub(super) resume: bool,
}

/// What is added to a sum.
#[derive(Clone, Copy)]
pub(super) enum Add<'a, F> {
    Nothing,
    /// A number of each column.
    Bias(&'a [F]),
    /// What the result holds.
    Result,
}

impl<F: Real> Job<'_, '_, F> {
    /// Does it, with `tile(rows, columns, a, panel, sums)` for one tile of sums; a tile of one row may have the columns of
    /// [`Real::row_panels`], and its sums in as many rows of `sums`. Inlined into one function for each instruction set.
    #[inline(always)]
    pub(super) fn run(mut self, tile: impl Fn(usize, usize, &[F], Panel<'_, F>, &mut Sums<F>)) {
        let columns = self.y.columns();
        let (terms, resume) = (self.terms.clone(), self.resume);
        let tiles = Tiles::new(self.count, self.tile_rows);
        let near = terms.len() * size_of::<Step<F>>() <= NEAR_BYTES;
        // The more tiles, the less each has to fetch; where a small cache is behind, weights nearby come in time by themselves.
        let bytes = if let Steps::Packed(all) = &self.steps { size_of_val(*all) } else { 0 };
        let ahead =
            near && (!small_cache(self.isa) || bytes.saturating_mul(tiles.len().max(2)) > 2 * FAR_BYTES);
        // Several panels at once for one row, wherever it needs all of their strips, unless they come from memory.
        let wide = self.count == 1 && !resume && matches!(self.steps, Steps::Packed(_)) && bytes <= FAR_BYTES;
        let row_panels = if wide { F::row_panels(self.isa) } else { 1 };
        let mut end = 0;
        while end < columns {
            let at = end;
            let left = columns - at;
            let panels = if left > row_panels * PANEL - F::LINE { row_panels } else { 1 };
            end = at + left.min(panels * PANEL);
            let mut next: Option<Strips<'_, F>> = None;
            let strips = match self.steps {
                Steps::Packed(all) => {
                    let of = |at: usize, panels: usize| {
                        let steps = &all[at / PANEL * self.depth..][..panels * self.depth];
                        Strips::new(steps, self.depth, terms.clone())
                    };
                    if ahead && end < columns {
                        next = Some(of(end, 1));
                    }
                    of(at, panels)
                }
                Steps::Loose(weights, memory) => {
                    let memory = &mut memory[..terms.len()];
                    pack_panel(self.isa, weights.column_range(terms.start, terms.len()), at / PANEL, memory);
                    let strips = Strips::new(memory, terms.len(), 0..terms.len());
                    if self.skip == Skip::Panels {
                        self.live.clear();
                        self.live.add_panel(strips);
                    }
                    strips
                }
            };
            for (index, rows) in tiles.clone().enumerate() {
                let next = next.map(|next| next.part(share(next.count(), index, tiles.len())));
                let a = &self.packed[rows.start * terms.len()..rows.end * terms.len()];
                let live = match self.skip {
                    Skip::Rows => self.live.get(index),
                    Skip::Panels => self.live.get(0),
                };
                self.y.fetch(self.first + rows.start..self.first + rows.end, at..end);
                if resume {
                    for (i, sums) in self.sums[..rows.len()].iter_mut().enumerate() {
                        *sums = padded(&self.y.row_mut(self.first + rows.start + i)[at..end]);
                    }
                }
                tile(rows.len(), end - at, a, Panel { strips, live, next, resume }, self.sums);
                for (panel, at) in (at..end).step_by(PANEL).enumerate() {
                    let rows = self.first + rows.start..self.first + rows.end;
                    let columns = at..end.min(at + PANEL);
                    send(&self.sums[panel..], self.add, self.activation, &mut self.y, rows, columns);
                }
            }
        }
    }
}

/// Finishes the sums of these rows and columns of the result.
#[inline(always)]
fn send<F: Real>(
    sums: &[[F; PANEL]],
    add: Add<'_, F>,
    activation: Fused,
    y: &mut MatrixMut<'_, F>,
    rows: Range<usize>,
    columns: Range<usize>,
) {
    let bias = match add {
        Add::Bias(all) => padded(&all[columns.clone()]),
        Add::Nothing | Add::Result => [F::default(); PANEL],
    };
    let (result, relu) = (matches!(add, Add::Result), activation == Fused::Relu);
    for (row, sums) in rows.zip(sums) {
        let y = &mut y.row_mut(row)[columns.clone()];
        match y.first_chunk_mut() {
            Some(whole) => finish(whole, sums, &bias, result, relu),
            None => {
                let mut whole = if result { padded(y) } else { [F::default(); PANEL] };
                finish(&mut whole, sums, &bias, result, relu);
                store(y, &whole);
            }
        }
    }
}

/// Adds the bias, or what is there already, and applies the activation.
#[inline(always)]
fn finish<F: Real>(y: &mut [F; PANEL], sums: &[F; PANEL], bias: &[F; PANEL], result: bool, relu: bool) {
    let mut values = *sums;
    // By index over a whole panel: what the compiler turns into vectors.
    if result {
        for j in 0..PANEL {
            values[j] = y[j] + values[j];
        }
    } else {
        for j in 0..PANEL {
            values[j] = values[j] + bias[j];
        }
    }
    if relu {
        for value in &mut values {
            *value = if *value < F::default() { F::default() } else { *value };
        }
    }
    *y = values;
}
