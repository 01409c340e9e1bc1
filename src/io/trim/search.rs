//! Which encoding of a tensor is the smallest: those of fixed width are planned or written, the range-coded ones
//! are tried.
//!
//! ```text
//! integers    one mapping
//! floats      uniform, or uniform rows, or palette, where the bits allow it; as they are, where it may win
//! each with   dense, bitmap, gaps: by length     mixed: for each stride, if it is quick enough     coded
//! ```

use super::encoding::Encoding;
use super::floats::Element;
use super::layout::{Laid, Layout, MIXED_MAX, Survivors, lay_out, planned_len};
use super::mapping::{Mapped, Mapping, map_codes, map_floats};
use super::mask_model::Grid;
use super::tensor::{Values, as_matrix};
use super::wire::width;

/// What the search for the smallest encoding may try.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct EncodeOptions {
    layouts: Vec<Layout>,
    image_width: Option<usize>,
    mixed_max: usize,
}

impl Default for EncodeOptions {
    /// Every layout; square images are recognized by their number of pixels; mixing up to 2^20 decisions.
    fn default() -> Self {
        Self { layouts: Layout::ALL.to_vec(), image_width: None, mixed_max: 1 << 20 }
    }
}

impl EncodeOptions {
    /// Only these layouts. [`Layout::Dense`] is taken where none of them applies.
    pub fn with_layouts(mut self, layouts: &[Layout]) -> Self {
        self.layouts = layouts.to_vec();
        self
    }

    /// The inputs of the first layer are images with rows of `width` pixels.
    pub fn with_image_width(mut self, width: usize) -> Self {
        self.image_width = Some(width);
        self
    }

    /// Tries [`Layout::Mixed`] for tensors that take up to so many `decisions`, at most 2^24: smaller files, which take about 0.05
    /// to 0.1 microseconds per decision to write and to read. There is one for each element, and for each that is not 0 twice the
    /// binary digits of its symbol: sparse weights of few values take little more than one per element, dense ones of 8 bits
    /// about twelve.
    pub fn with_mixed_up_to(mut self, decisions: usize) -> Self {
        self.mixed_max = decisions.min(MIXED_MAX);
        self
    }

    fn strides(&self, rows: usize, cols: usize) -> Vec<usize> {
        let mut strides = vec![0];
        let root = cols.isqrt();
        let square = (rows > 1 && root >= 4 && root * root == cols).then_some(root);
        let given = self
            .image_width
            .filter(|&width| rows > 1 && width > 1 && width < cols && cols.is_multiple_of(width));
        strides.extend(given.or(square));
        strides
    }
}

/// The encoding, the table of its mapping, the laid-out matrix.
pub(crate) type Choice = (Encoding, Vec<u8>, Laid);

pub(crate) fn smallest(shape: &[usize], values: &Values, options: &EncodeOptions) -> Choice {
    match values {
        Values::F32(values) => smallest_of_floats(values, shape, options),
        Values::F64(values) => smallest_of_floats(values, shape, options),
        Values::Codes(codes) => {
            let (rows, cols) = as_matrix(shape, codes.values().len());
            let (mask, mapped) = map_codes(codes);
            Search { rows, cols, options, mask: &mask, dense: &[] as &[f32] }.smallest(vec![mapped])
        }
    }
}

fn smallest_of_floats<T: Element>(values: &[T], shape: &[usize], options: &EncodeOptions) -> Choice {
    let (rows, cols) = as_matrix(shape, values.len());
    let mask: Vec<u8> = values.iter().map(|v| u8::from(v.to_raw() != 0)).collect();
    let search = Search { rows, cols, options, mask: &mask, dense: values };
    search.smallest(map_floats(values, rows, cols))
}

/// Binary decisions that a range-coded layout of `n` elements takes, at most.
fn decisions<T>(n: usize, survivors: Survivors<'_, T>) -> usize {
    match survivors {
        Survivors::Floats(_) => n,
        Survivors::Symbols(symbols, _) => {
            n + symbols.iter().map(|s| 2 * width(s.unsigned_abs().into()) as usize).sum::<usize>()
        }
    }
}

/// The candidates of one tensor.
struct Search<'a, T> {
    rows: usize,
    cols: usize,
    options: &'a EncodeOptions,
    mask: &'a [u8],
    dense: &'a [T],
}

impl<T: Element> Search<'_, T> {
    fn smallest(&self, mapped: Vec<Mapped>) -> Choice {
        let mut best: Option<Choice> = None;
        for mapped in &mapped {
            let survivors = Survivors::Symbols(&mapped.symbols, mapped.alphabet);
            self.layouts(mapped.mapping, &mapped.table, survivors, &mut best);
        }
        // Where a scale was found, or many elements share a palette, floats win only if the table counts.
        let tiny = self.mask.len() <= 256 && !self.dense.is_empty();
        let shared = mapped.iter().any(|m| m.mapping != Mapping::Palette || m.symbols.len() > 1 << 14);
        if tiny || !shared {
            let floats: Vec<T> = self.dense.iter().copied().filter(|v| v.to_raw() != 0).collect();
            self.layouts(Mapping::Floats, &[], Survivors::Floats(&floats), &mut best);
        }
        best.unwrap_or_else(|| {
            // No allowed layout applied.
            let encoding = Encoding { layout: Layout::Dense, mapping: Mapping::Floats };
            let (table, survivors) = match mapped.first() {
                Some(m) => (m.table.clone(), Survivors::Symbols(&m.symbols, m.alphabet)),
                None => (Vec::new(), Survivors::Floats(self.dense)),
            };
            let mapping = mapped.first().map_or(Mapping::Floats, |m| m.mapping);
            let laid = lay_out(Layout::Dense, self.grid(0, false), self.mask, survivors, self.dense);
            (Encoding { mapping, ..encoding }, table, laid)
        })
    }

    fn grid(&self, stride: usize, mixed: bool) -> Grid {
        Grid { rows: self.rows, cols: self.cols, stride, mixed }
    }

    fn layouts(
        &self,
        mapping: Mapping,
        table: &[u8],
        survivors: Survivors<'_, T>,
        best: &mut Option<Choice>,
    ) {
        let n = self.mask.len();
        let mut offer = |layout, grid| {
            let laid = lay_out(layout, grid, self.mask, survivors, self.dense);
            let length = table.len() + laid.bytes.len();
            if best.as_ref().is_none_or(|(_, table, laid)| length < table.len() + laid.bytes.len()) {
                *best = Some((Encoding { layout, mapping }, table.to_vec(), laid));
            }
        };
        let fixed =
            self.options.layouts.iter().filter_map(|&layout| {
                planned_len(layout, self.mask, survivors).map(|length| (length, layout))
            });
        if n <= 1 << 16 {
            // Cheap enough to write them all: the plan does not see how far floats can be narrowed.
            fixed.for_each(|(_, layout)| offer(layout, self.grid(0, false)));
        } else if let Some((_, layout)) = fixed.min() {
            offer(layout, self.grid(0, false));
        }
        // Floats without a zero among them have no mask to code.
        let masked = !matches!(survivors, Survivors::Floats(values) if values.len() == n);
        let allows = |layout| self.options.layouts.contains(&layout) && n > 0 && masked;
        let mixes = allows(Layout::Mixed) && decisions(n, survivors) <= self.options.mixed_max;
        if mixes {
            for stride in self.options.strides(self.rows, self.cols) {
                offer(Layout::Mixed, self.grid(stride, true));
            }
        }
        if allows(Layout::Coded) && n <= u32::MAX as usize {
            offer(Layout::Coded, self.grid(0, false));
        }
    }
}
