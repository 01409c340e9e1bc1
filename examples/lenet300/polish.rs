//! Rate against distortion: which codes are not worth their bits? Asked one by one, answered by measuring.
//!
//! ```text
//! price of q -> q'  =  (loss(q') - loss(q)) / (bits(q) - bits(q'))        the cheapest change is made first
//! ```
//!
//! The loss is that of some thousand training images; only the neurons that a code reaches are computed anew. The bits are
//! estimated from the densities of the code's row and column; what ends the search is the length of the real file.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use trimnet::ndarray::{Array2, ArrayView1, ArrayView2};

/// What the loss is measured on.
pub struct Task<'a> {
    /// `[rows, inputs]`
    pub inputs: ArrayView2<'a, f32>,
    pub labels: &'a [usize],
    /// Logits of the teacher `[rows, classes]`.
    pub teacher: ArrayView2<'a, f32>,
    pub temperature: f32,
    /// Share of the cross-entropy with the labels.
    pub alpha: f32,
}

/// A network of codes over a batch, by neurons: the values of one over all images lie together.
pub struct Polish<'a> {
    codes: Vec<Array2<i32>>,
    scales: Vec<f32>,
    levels: i32,
    task: Task<'a>,
    inputs: Vec<Vec<f32>>,
    /// Of each layer, before its activation.
    sums: Vec<Vec<Vec<f32>>>,
    /// Softened probabilities of the teacher `[class][row]`.
    soft: Vec<Vec<f32>>,
    loss: f64,
    rates: Vec<Rates>,
}

/// One code that may change by `by`.
#[derive(Clone, Copy, Debug)]
struct Change {
    layer: usize,
    out: usize,
    at: usize,
    by: i32,
}

/// Columns that an attempt changed, layer by layer, and columns to be used again.
#[derive(Default)]
struct Scratch {
    changed: Vec<Vec<(usize, Vec<f32>)>>,
    spare: Vec<Vec<f32>>,
}

impl<'a> Polish<'a> {
    /// The network `relu(x * (scale * codes)' + bias)` layer by layer.
    pub fn new(
        codes: Vec<Array2<i32>>,
        scales: Vec<f32>,
        levels: i32,
        biases: &[Vec<f32>],
        task: Task<'a>,
    ) -> Self {
        let inputs: Vec<Vec<f32>> = task.inputs.columns().into_iter().map(|column| column.to_vec()).collect();
        let mut sums: Vec<Vec<Vec<f32>>> = Vec::new();
        for ((codes, &scale), biases) in codes.iter().zip(&scales).zip(biases) {
            let before = sums.last();
            let of_neuron = |(row, &bias): (ArrayView1<'_, i32>, &f32)| {
                let mut sum = vec![bias; task.inputs.nrows()];
                for (at, &code) in row.iter().enumerate().filter(|(_, code)| **code != 0) {
                    match before {
                        None => add(&mut sum, code as f32 * scale, inputs[at].iter().copied()),
                        Some(before) => {
                            add(&mut sum, code as f32 * scale, before[at].iter().map(|x| x.max(0.0)))
                        }
                    }
                }
                sum
            };
            let layer = codes.rows().into_iter().zip(biases).map(of_neuron).collect();
            sums.push(layer);
        }
        let soft = softened(&task);
        let rates = codes.iter().map(|codes| Rates::new(codes, levels)).collect();
        let mut polish = Self { codes, scales, levels, task, inputs, sums, soft, loss: 0.0, rates };
        polish.loss = polish.measure(&Scratch::default());
        polish
    }

    /// The codes as they are now.
    pub fn codes(&self) -> &[Array2<i32>] {
        &self.codes
    }

    /// Takes or lowers codes, the cheapest first, until `bytes` of the codes is at most `budget`. The price of the last one.
    pub fn reduce(&mut self, budget: usize, bytes: impl Fn(&[Array2<i32>]) -> usize) -> f64 {
        if bytes(&self.codes) <= budget {
            return 0.0;
        }
        let mut heap: BinaryHeap<Priced> = self.price_all().into();
        let (mut price, mut accepted) = (0.0_f64, 0);
        let mut scratch = Scratch::default();
        while let Some(top) = heap.pop() {
            let Some(now) = self.price(top.change, &mut scratch) else { continue };
            // Others may have become cheaper than this one since it was priced.
            if heap.peek().is_some_and(|next| now.price > next.price.max(0.0) * 1.05 + 1e-12) {
                heap.push(now);
                continue;
            }
            let loss = self.attempt(now.change, &mut scratch);
            self.accept(now.change, loss, &mut scratch);
            price = price.max(now.price);
            let Change { layer, out, at, .. } = now.change;
            heap.extend(self.cheapest(layer, out, at, &mut scratch));
            accepted += 1;
            if accepted % 20 == 0 && bytes(&self.codes) <= budget {
                break;
            }
        }
        price
    }

    /// Raises and lowers codes, and adds those `wanted` (layer, row, column, sign), where the loss falls, and by more than
    /// `price` for each bit more.
    pub fn improve(&mut self, price: f64, wanted: &[(usize, usize, usize, i32)]) {
        let mut scratch = Scratch::default();
        let mut changes: Vec<Change> =
            wanted.iter().map(|&(layer, out, at, by)| Change { layer, out, at, by }).collect();
        for (layer, codes) in self.codes.iter().enumerate() {
            for ((out, at), &code) in codes.indexed_iter().filter(|(_, code)| **code != 0) {
                changes.extend([1, -1].map(|by| Change { layer, out, at, by: by * code.signum() }));
            }
        }
        for change in changes {
            if let Some(bits) = self.bits_saved(change) {
                let loss = self.attempt(change, &mut scratch);
                if loss < self.loss && loss - self.loss < price * bits {
                    self.accept(change, loss, &mut scratch);
                }
            }
        }
    }

    fn price_all(&self) -> Vec<Priced> {
        let places: Vec<(usize, usize, usize)> = self
            .codes
            .iter()
            .enumerate()
            .flat_map(|(layer, codes)| {
                codes
                    .indexed_iter()
                    .filter(|(_, code)| **code != 0)
                    .map(move |((out, at), _)| (layer, out, at))
            })
            .collect();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let part = places.len().div_ceil(threads).max(1);
        let price = |places: &[(usize, usize, usize)]| {
            let mut scratch = Scratch::default();
            places
                .iter()
                .filter_map(|&(l, out, at)| self.cheapest(l, out, at, &mut scratch))
                .collect::<Vec<_>>()
        };
        std::thread::scope(|scope| {
            let parts: Vec<_> =
                places.chunks(part).map(|places| scope.spawn(move || price(places))).collect();
            parts.into_iter().flat_map(|part| part.join().unwrap_or_default()).collect()
        })
    }

    /// The cheaper of taking a code and of lowering it by one.
    fn cheapest(&self, layer: usize, out: usize, at: usize, scratch: &mut Scratch) -> Option<Priced> {
        let code = self.codes[layer][[out, at]];
        let lower = (code.abs() > 1).then_some(-code.signum());
        let changes = [Some(-code), lower].into_iter().flatten().map(|by| Change { layer, out, at, by });
        changes.filter_map(|change| self.price(change, scratch)).max()
    }

    /// What a change costs per bit that it saves; none if it saves nothing, or is not possible any more.
    fn price(&self, change: Change, scratch: &mut Scratch) -> Option<Priced> {
        let bits = self.bits_saved(change).filter(|&bits| bits > 0.0)?;
        Some(Priced { price: (self.attempt(change, scratch) - self.loss) / bits, change })
    }

    fn bits_saved(&self, Change { layer, out, at, by }: Change) -> Option<f64> {
        let code = self.codes[layer][[out, at]];
        let rates = &self.rates[layer];
        let possible = by != 0 && (code + by).abs() <= self.levels && code * (code + by) >= 0;
        possible.then(|| rates.bits(out, at, code) - rates.bits(out, at, code + by))
    }

    /// The loss if this code changed; the changed columns stay in `scratch`.
    fn attempt(&self, Change { layer, out, at, by }: Change, scratch: &mut Scratch) -> f64 {
        let Scratch { changed, spare } = scratch;
        changed.resize_with(self.codes.len(), Vec::new);
        changed.iter_mut().for_each(|list| spare.extend(list.drain(..).map(|(_, column)| column)));
        let mut copy = |of: &[f32]| {
            let mut column = spare.pop().unwrap_or_default();
            column.clear();
            column.extend_from_slice(of);
            column
        };
        let mut column = copy(&self.sums[layer][out]);
        let step = by as f32 * self.scales[layer];
        match layer.checked_sub(1) {
            None => add(&mut column, step, self.inputs[at].iter().copied()),
            Some(before) => add(&mut column, step, self.sums[before][at].iter().map(|x| x.max(0.0))),
        }
        changed[layer].push((out, column));
        for next in layer + 1..self.codes.len() {
            let (before, after) = changed.split_at_mut(next);
            let before = &before[next - 1];
            for (k, row) in self.codes[next].rows().into_iter().enumerate() {
                let mut heard = before.iter().filter(|(j, _)| row[*j] != 0).peekable();
                if heard.peek().is_none() {
                    continue;
                }
                let mut column = copy(&self.sums[next][k]);
                for (j, new) in heard {
                    let old = &self.sums[next - 1][*j];
                    let moved = new.iter().zip(old).map(|(new, old)| new.max(0.0) - old.max(0.0));
                    add(&mut column, row[*j] as f32 * self.scales[next], moved);
                }
                after[0].push((k, column));
            }
        }
        self.measure(scratch)
    }

    fn accept(&mut self, Change { layer, out, at, by }: Change, loss: f64, scratch: &mut Scratch) {
        for (sums, changed) in self.sums.iter_mut().zip(&mut scratch.changed) {
            for (neuron, column) in changed.drain(..) {
                scratch.spare.push(std::mem::replace(&mut sums[neuron], column));
            }
        }
        let code = &mut self.codes[layer][[out, at]];
        self.rates[layer].change(out, at, *code, *code + by);
        *code += by;
        self.loss = loss;
    }

    /// `alpha * CE + (1 - alpha) * T^2 * (cross-entropy with the teacher)`, mean over the rows.
    fn measure(&self, scratch: &Scratch) -> f64 {
        const BLOCK: usize = 256;
        let mut logits: Vec<&[f32]> =
            self.sums.last().map_or(Vec::new(), |last| last.iter().map(Vec::as_slice).collect());
        for (class, column) in scratch.changed.last().into_iter().flatten() {
            logits[*class] = column;
        }
        let (t, alpha, rows) = (self.task.temperature, self.task.alpha, self.task.labels.len());
        let mut total = 0.0;
        for from in (0..rows).step_by(BLOCK) {
            let n = BLOCK.min(rows - from);
            let (mut top, mut soft, mut hard, mut cross) =
                ([f32::MIN; BLOCK], [0.0; BLOCK], [0.0; BLOCK], [0.0; BLOCK]);
            for column in &logits {
                top.iter_mut().zip(&column[from..from + n]).for_each(|(top, &z)| *top = top.max(z));
            }
            for (column, p) in logits.iter().zip(&self.soft) {
                let (z, p) = (&column[from..from + n], &p[from..from + n]);
                for i in 0..n {
                    let d = z[i] - top[i];
                    let e = exp(d / t);
                    soft[i] += e;
                    hard[i] += exp(d);
                    cross[i] += p[i] * d / t;
                }
            }
            for (i, &label) in self.task.labels[from..from + n].iter().enumerate() {
                let ce = hard[i].ln() - (logits[label][from + i] - top[i]);
                total += f64::from(alpha * ce + (1.0 - alpha) * t * t * (soft[i].ln() - cross[i]));
            }
        }
        total / rows as f64
    }
}

/// A change and what it costs; the cheapest is the greatest.
#[derive(Clone, Copy, Debug)]
struct Priced {
    price: f64,
    change: Change,
}

impl Ord for Priced {
    fn cmp(&self, other: &Self) -> Ordering {
        other.price.total_cmp(&self.price)
    }
}

impl PartialOrd for Priced {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Priced {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Priced {}

/// What the codes of a layer cost in the file, about.
struct Rates {
    rows: Vec<f64>,
    columns: Vec<f64>,
    total: f64,
    /// How often each magnitude occurs, and one more.
    magnitudes: Vec<f64>,
    live_rows: f64,
    live_columns: f64,
}

impl Rates {
    fn new(codes: &Array2<i32>, levels: i32) -> Self {
        let count = |line: ArrayView1<'_, i32>| line.iter().filter(|code| **code != 0).count() as f64;
        let rows: Vec<f64> = codes.rows().into_iter().map(count).collect();
        let columns: Vec<f64> = codes.columns().into_iter().map(count).collect();
        let mut magnitudes = vec![1.0; levels as usize + 1];
        codes.iter().for_each(|code| magnitudes[code.unsigned_abs() as usize] += 1.0);
        let live = |lines: &[f64]| lines.iter().filter(|n| **n > 0.0).count().max(1) as f64;
        let (live_rows, live_columns) = (live(&rows), live(&columns));
        Self { total: rows.iter().sum(), rows, columns, magnitudes, live_rows, live_columns }
    }

    fn bits(&self, out: usize, at: usize, code: i32) -> f64 {
        let odds = |p: f64| p / (1.0 - p).max(1e-3);
        let mean = self.total / (self.live_rows * self.live_columns);
        let row = (self.rows[out] + 4.0 * mean) / (self.live_columns + 4.0);
        let column = (self.columns[at] + 4.0 * mean) / (self.live_rows + 4.0);
        let odds = odds(row) * odds(column) / odds(mean);
        let p = (odds / (1.0 + odds)).clamp(0.01, 0.9);
        if code == 0 {
            return -(1.0 - p).log2();
        }
        let kept: f64 = self.magnitudes.iter().skip(1).sum();
        1.0 - p.log2() - (self.magnitudes[code.unsigned_abs() as usize] / kept).log2()
    }

    fn change(&mut self, out: usize, at: usize, from: i32, to: i32) {
        let more = f64::from(i32::from(to != 0) - i32::from(from != 0));
        self.rows[out] += more;
        self.columns[at] += more;
        self.total += more;
        self.magnitudes[from.unsigned_abs() as usize] -= 1.0;
        self.magnitudes[to.unsigned_abs() as usize] += 1.0;
    }
}

/// The teacher's probabilities at the temperature, `[class][row]`.
fn softened(task: &Task<'_>) -> Vec<Vec<f32>> {
    let mut soft = vec![vec![0.0; task.teacher.nrows()]; task.teacher.ncols()];
    for (row, logits) in task.teacher.rows().into_iter().enumerate() {
        let top = logits.iter().fold(f32::MIN, |top, &z| top.max(z));
        let exps = logits.mapv(|z| ((z - top) / task.temperature).exp());
        let sum = exps.sum();
        soft.iter_mut().zip(&exps).for_each(|(class, e)| class[row] = e / sum);
    }
    soft
}

fn add(sum: &mut [f32], w: f32, x: impl Iterator<Item = f32>) {
    sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += w * x);
}

/// `exp(x)` for `x <= 0` within 3e-6 of its value, in operations that vectorize.
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
    let x = (x * std::f32::consts::LOG2_E).max(-125.0);
    let whole = (x + ROUND) - ROUND;
    let f = x - whole;
    let p = 1.0
        + f * (std::f32::consts::LN_2
            + f * (0.240_226_5 + f * (0.055_504_1 + f * (0.009_618_1 + f * 0.001_333_4))));
    p * f32::from_bits(((whole as i32 + 127) as u32) << 23)
}
