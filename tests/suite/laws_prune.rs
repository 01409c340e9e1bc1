//! Laws of the pruners: those of every compressor, and that each one equals its slow definition.

use ndarray::{Array2, Axis, Ix2};
use proptest::prelude::*;
use trimnet::prune::{
    MagnitudePruner, NmPruner, Norm, PruneCount, PruneReport, Pruner, Scope, Selection, StructuredPruner,
    score,
};
use trimnet::{Compressed, Mask, SparseTensor};

use crate::laws::{self, compressor_laws};

fn sparsity(sparsity: f64) -> Selection {
    Selection::sparsity(sparsity).unwrap()
}

compressor_laws! {
    magnitude_by_sparsity: MagnitudePruner::sparsity(0.6).unwrap(),
    magnitude_by_threshold: MagnitudePruner::threshold(0.75).unwrap(),
    magnitude_per_row: MagnitudePruner::new(sparsity(0.5).with_scope(Scope::PerRow)),
    magnitude_of_nothing: MagnitudePruner::sparsity(0.0).unwrap(),
    magnitude_of_everything: MagnitudePruner::sparsity(1.0).unwrap(),
    magnitude_floor: MagnitudePruner::new(sparsity(0.7).with_count(PruneCount::Floor)),
    magnitude_torch_pruning: MagnitudePruner::new(sparsity(0.7).with_count(PruneCount::TorchPruningKeep)),
    magnitude_tfmot: MagnitudePruner::new(sparsity(0.7).with_count(PruneCount::TfmotKeep)),
    magnitude_sparse_gpt: MagnitudePruner::new(sparsity(0.7).with_count(PruneCount::SparseGptThreshold)),
    magnitude_nncf: MagnitudePruner::new(sparsity(0.7).with_count(PruneCount::NncfThreshold)),
    rows: StructuredPruner::rows(sparsity(0.4)),
    columns: StructuredPruner::columns(sparsity(0.4)).with_norm(Norm::L1),
    blocks: StructuredPruner::blocks(4, 3, sparsity(0.5)).unwrap().with_norm(Norm::Max),
    two_of_four: NmPruner::keep(2, 4).unwrap(),
    five_of_twenty: NmPruner::keep(5, 20).unwrap(),
}

/// The definition: in every group, sort by score and index and drop the first `k(len)` of what is left.
fn by_sorting(
    scores: &Array2<f32>,
    earlier: &Mask<Ix2>,
    group_of: impl Fn(usize, usize) -> usize,
    k: impl Fn(usize) -> usize,
) -> Mask<Ix2> {
    let groups = scores.indexed_iter().map(|((i, j), _)| group_of(i, j) + 1).max().unwrap_or(0);
    let mut members = vec![Vec::new(); groups];
    for ((i, j), &score) in scores.indexed_iter() {
        members[group_of(i, j)].push((earlier.keep()[[i, j]], score, (i, j)));
    }
    let mut keep = earlier.keep().to_owned();
    for group in &mut members {
        group.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)));
        group[..k(group.len())].iter().for_each(|&(.., place)| keep[place] = false);
    }
    Mask::new(keep)
}

fn rne(sparsity: f64) -> impl Fn(usize) -> usize {
    move |n| (sparsity * n as f64).round_ties_even() as usize
}

/// The mask equals its definition, with an earlier mask and without; the artifact holds its survivors, bit by bit.
fn pruner(
    pruner: &impl Pruner<f32, Ix2>,
    weights: &Array2<f32>,
    earlier: &Mask<Ix2>,
    definition: impl Fn(&Mask<Ix2>) -> Mask<Ix2>,
) {
    let (mask, report) = pruner.mask(weights.view(), Some(earlier)).unwrap();
    assert_eq!(mask, definition(earlier), "with an earlier mask");
    assert_eq!((report.weights, report.zeros), (mask.len(), mask.len() - mask.kept()));
    assert!(report.dropped <= report.units);

    let (mask, _) = pruner.mask(weights.view(), None).unwrap();
    assert_eq!(mask, definition(&Mask::full(weights.raw_dim())), "alone");
    let sparse = pruner.compress(weights.view()).unwrap();
    let out = sparse.decompress().unwrap();
    for ((w, out), keep) in weights.iter().zip(&out).zip(mask.keep()) {
        assert_eq!(out.to_bits(), if *keep { w.to_bits() } else { 0 });
    }
    // Smaller than the bitmap form, and so than what it came from with one bit added per weight.
    assert!(sparse.size_bytes() <= weights.len().div_ceil(8) + 4 * sparse.nnz());
    assert!(sparse.nnz() <= mask.kept());
}

/// Zeros of either sign rank alike.
fn magnitudes(weights: &Array2<f32>) -> Array2<f32> {
    score::magnitude(weights.view(), Norm::L1)
}

/// Weights and an earlier mask of their shape.
fn masked() -> impl Strategy<Value = (Array2<f32>, Mask<Ix2>)> {
    (laws::weights(), any::<u64>(), 0.0..1.0).prop_map(|(weights, seed, share)| {
        let keep = score::random::<f64, _>(weights.raw_dim(), seed).mapv(|r| r >= share);
        (weights, Mask::new(keep))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn magnitude_is_a_sorted_prefix((w, earlier) in masked(), s in 0.0..=1.0) {
        let scores = magnitudes(&w);
        let definition = |earlier: &Mask<Ix2>| by_sorting(&scores, earlier, |_, _| 0, rne(s));
        pruner(&MagnitudePruner::sparsity(s).unwrap(), &w, &earlier, definition);
    }

    #[test]
    fn per_row_is_a_sorted_prefix_of_each_row((w, earlier) in masked(), s in 0.0..=1.0) {
        let scores = magnitudes(&w);
        let definition = |earlier: &Mask<Ix2>| by_sorting(&scores, earlier, |i, _| i, rne(s));
        let per_row = MagnitudePruner::new(sparsity(s).with_scope(Scope::PerRow));
        pruner(&per_row, &w, &earlier, definition);
    }

    #[test]
    fn nm_is_a_sorted_prefix_of_each_group((w, earlier) in masked(), m in 1..=24_usize, n in 1..=24_usize) {
        let (n, m) = (n.min(m), n.max(m));
        let scores = magnitudes(&w);
        let groups = w.ncols().div_ceil(m);
        let definition = |earlier: &Mask<Ix2>| {
            by_sorting(&scores, earlier, |i, j| i * groups + j / m, |len| len.saturating_sub(n))
        };
        pruner(&NmPruner::keep(n, m).unwrap(), &w, &earlier, definition);
    }

    #[test]
    fn a_threshold_drops_what_is_below((w, earlier) in masked(), t in 0.0_f32..2.0) {
        let definition = |earlier: &Mask<Ix2>| {
            Mask::new(w.mapv(|w| w.abs() >= t)).and(earlier).unwrap()
        };
        pruner(&MagnitudePruner::threshold(f64::from(t)).unwrap(), &w, &earlier, definition);
    }

    #[test]
    fn structured_is_a_sorted_prefix_of_the_norms(
        (w, earlier) in masked(), s in 0.0..=1.0, axis in 0..2_usize, height in 1..=5_usize, width in 1..=5_usize,
    ) {
        // Which units go, by sorting them; those of which nothing is left go first.
        let expand = |norms: &Array2<f32>, unit: &dyn Fn(usize, usize) -> (usize, usize), earlier: &Mask<Ix2>| {
            let mut left = norms.mapv(|_| false);
            earlier.keep().indexed_iter().for_each(|((i, j), &keep)| left[unit(i, j)] |= keep);
            let units = by_sorting(norms, &Mask::new(left), |_, _| 0, rne(s));
            let mut keep = earlier.keep().to_owned();
            keep.indexed_iter_mut().for_each(|((i, j), keep)| *keep &= units.keep()[unit(i, j)]);
            Mask::new(keep)
        };
        let norms = score::slice_norms(w.view(), Axis(axis), Norm::L2).unwrap().insert_axis(Axis(0));
        let unit = |i, j| (0, [i, j][axis]);
        let slices = StructuredPruner::slices(Axis(axis), sparsity(s));
        pruner(&slices, &w, &earlier, |earlier| expand(&norms, &unit, earlier));

        let norms = score::block_norms(w.view(), [height, width], Norm::L1).unwrap();
        let unit = |i, j| (i / height, j / width);
        let blocks = StructuredPruner::blocks(height, width, sparsity(s)).unwrap().with_norm(Norm::L1);
        pruner(&blocks, &w, &earlier, |earlier| expand(&norms, &unit, earlier));
    }

    #[test]
    fn global_is_a_sorted_prefix_of_all_rows((w, earlier) in masked(), s in 0.0..=1.0, min_keep in 0..4_usize) {
        // Every row as a tensor of its own.
        let rows: Vec<_> = w.rows().into_iter().collect();
        let masks: Vec<_> = earlier.keep().rows().into_iter().map(|row| Mask::new(row.to_owned())).collect();
        let magnitude = MagnitudePruner::sparsity(s).unwrap();
        let free = magnitude.mask_global(&rows, Some(&masks), 0).unwrap();
        let expected = by_sorting(&magnitudes(&w), &earlier, |_, _| 0, rne(s));
        for ((mask, _), expected) in free.iter().zip(expected.keep().rows()) {
            prop_assert_eq!(mask.keep(), expected);
        }
        let total: PruneReport = free.iter().map(|&(_, report)| report).sum();
        prop_assert_eq!(total.zeros, w.len() - expected.kept());

        let saved = magnitude.mask_global(&rows, Some(&masks), min_keep).unwrap();
        let saved_total: PruneReport = saved.iter().map(|&(_, report)| report).sum();
        prop_assert!(saved_total.zeros <= total.zeros);
        for ((mask, _), earlier) in saved.iter().zip(&masks) {
            prop_assert!(mask.kept() >= min_keep.min(earlier.kept()));
            prop_assert_eq!(&mask.clone().and(earlier).unwrap(), mask);
        }
    }

    #[test]
    fn sparse_rows_and_product_are_those_of_the_dense_tensor(w in laws::weights(), n in 0..4_usize) {
        let w = w.mapv(|w| f64::from(w.clamp(-9.0, 9.0)));
        let sparse = SparseTensor::new(w.view());
        let rows = sparse.to_rows().unwrap();
        let mut out = Array2::zeros(w.raw_dim());
        for (r, span) in rows.row_pointers().windows(2).enumerate() {
            for (&column, &value) in rows.column_indices()[span[0]..span[1]].iter().zip(&rows.values()[span[0]..]) {
                out[[r, column as usize]] = value;
            }
        }
        prop_assert_eq!(&out, &w);
        let x = score::random::<f64, _>((n, w.ncols()), 3);
        approx::assert_abs_diff_eq!(sparse.dot(x.view()).unwrap(), x.dot(&w.t()), epsilon = 1e-9);
    }
}
