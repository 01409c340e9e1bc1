//! `quantize|dequantize|fakequant.i8.tensor|channel.N` with the scale known, and `observe.minmax|histogram.10m`.

use std::hint::black_box;

use ndarray::Array2;
use trimnet::Float;
use trimnet::kernel::Pool;
use trimnet::quantize::{HistogramObserver, MinMaxObserver, Observer, QuantParams, Scheme};

use super::case::{Call, Case, Context};
use super::{check, data};

const N: usize = 4096;
const BATCH: usize = 1_000_000;

/// The cases of this family.
pub fn cases() -> Vec<Case> {
    let mut cases = typed::<f32>("");
    cases.extend(typed::<f64>(".f64"));
    cases.push(Case::new("observe.histogram.10m", histogram));
    cases
}

fn typed<F: Float>(suffix: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    for channel in [false, true] {
        let name = if channel { "channel" } else { "tensor" };
        let id = |work: &str| format!("{work}.i8.{name}.{N}{suffix}");
        cases.push(Case::new(id("quantize"), move |context| quantize::<F>(context, channel)));
        cases.push(Case::new(id("dequantize"), move |context| dequantize::<F>(context, channel)));
        let fake = Case::new(id("fakequant"), move |context| fake::<F>(context, channel));
        cases.push(if channel && F::BYTES == 4 { fake.smoke() } else { fake });
    }
    cases.push(Case::new(format!("observe.minmax.10m{suffix}"), min_max::<F>));
    cases
}

struct Problem<F> {
    pool: Pool,
    scheme: Scheme,
    w: Array2<F>,
    params: Vec<QuantParams<F>>,
    /// By the formula.
    codes: Array2<i8>,
}

fn problem<F: Float>(context: &Context, channel: bool) -> Result<Problem<F>, String> {
    let w: Vec<F> = data::normal(N * N, 1, 0.02).into_iter().map(|w| F::of(w.into())).collect();
    let scale = |w: &[F]| {
        let amax = w.iter().fold(F::zero(), |amax, w| if w.abs() > amax { w.abs() } else { amax });
        QuantParams { scale: amax / F::of(127.0), zero_point: 0 }
    };
    let scheme = Scheme::int8_symmetric_127();
    let (scheme, params) = match channel {
        true => (scheme.per_channel(0), w.chunks(N).map(scale).collect()),
        false => (scheme, vec![scale(&w)]),
    };
    let w = Array2::from_shape_vec((N, N), w).map_err(|e| e.to_string())?;
    let row = |i: usize| params[if channel { i } else { 0 }].scale;
    let codes = Array2::from_shape_fn((N, N), |(i, j)| {
        (w[[i, j]] / row(i)).round_half_even().as_f64().clamp(-127.0, 127.0) as i8
    });
    Ok(Problem { pool: Pool::new(context.threads), scheme, w, params, codes })
}

fn quantize<F: Float>(context: &Context, channel: bool) -> Result<Call, String> {
    let Problem { pool, scheme, w, params, codes } = problem::<F>(context, channel)?;
    let mut out = Array2::<i8>::ones((N, N));
    let call = move |out: &mut Array2<i8>| {
        scheme.quantize_into(&params, black_box(w.view()), out.view_mut(), &pool).map_err(|e| e.to_string())
    };
    call(&mut out)?;
    check::equal("codes", out.as_slice().unwrap_or_default(), codes.as_slice().unwrap_or_default())?;
    Ok(Box::new(move || {
        black_box(call(&mut out).ok());
        black_box(&mut out);
    }))
}

fn dequantize<F: Float>(context: &Context, channel: bool) -> Result<Call, String> {
    let Problem { pool, scheme, params, codes, .. } = problem::<F>(context, channel)?;
    let expected = numbers(&codes, &params, channel);
    let mut out = Array2::<F>::ones((N, N));
    let call = move |out: &mut Array2<F>| {
        let codes = black_box(codes.view());
        scheme.dequantize_into(&params, codes, out.view_mut(), &pool).map_err(|e| e.to_string())
    };
    call(&mut out)?;
    check::equal("numbers", out.as_slice().unwrap_or_default(), &expected)?;
    Ok(Box::new(move || {
        black_box(call(&mut out).ok());
        black_box(&mut out);
    }))
}

fn fake<F: Float>(context: &Context, channel: bool) -> Result<Call, String> {
    let Problem { pool, scheme, w, params, codes } = problem::<F>(context, channel)?;
    let expected = numbers(&codes, &params, channel);
    let mut out = Array2::<F>::ones((N, N));
    let call = move |out: &mut Array2<F>| {
        let w = black_box(w.view());
        scheme.fake_quantize_into(&params, w, out.view_mut(), &pool).map_err(|e| e.to_string())
    };
    call(&mut out)?;
    check::equal("numbers", out.as_slice().unwrap_or_default(), &expected)?;
    Ok(Box::new(move || {
        black_box(call(&mut out).ok());
        black_box(&mut out);
    }))
}

fn numbers<F: Float>(codes: &Array2<i8>, params: &[QuantParams<F>], channel: bool) -> Vec<F> {
    let scale = |i: usize| params[if channel { i } else { 0 }].scale;
    codes.indexed_iter().map(|((i, _), &code)| F::of(code.into()) * scale(i)).collect()
}

fn batches<F: Float>() -> Vec<F> {
    data::normal(10 * BATCH, 1, 1.0).into_iter().map(|x| F::of(x.max(0.0).into())).collect()
}

fn min_max<F: Float>(context: &Context) -> Result<Call, String> {
    let (x, pool) = (batches::<F>(), Pool::new(context.threads));
    let call = move || {
        let mut observer = MinMaxObserver::default();
        black_box(&x).chunks(BATCH).for_each(|batch| observer.observe_on(batch, &pool));
        observer.range().map_err(|e| e.to_string())
    };
    let range = call()?;
    let largest = batches::<F>().into_iter().fold(F::zero(), |a, b| if b > a { b } else { a });
    check::equal("range", &[range.min(), range.max()], &[F::zero(), largest])?;
    Ok(Box::new(move || {
        black_box(call().ok());
    }))
}

fn histogram(context: &Context) -> Result<Call, String> {
    let (x, pool) = (batches::<f32>(), Pool::new(context.threads));
    let largest = x.iter().copied().fold(0.0, f32::max);
    let call = move || {
        let mut observer = HistogramObserver::default();
        black_box(&x).chunks(BATCH).for_each(|batch| observer.observe_on(batch, &pool));
        let scheme = Scheme::uint8_affine();
        let found = observer.least_squares(&scheme).map_err(|e| e.to_string())?;
        Ok::<_, String>(scheme.params(found.range).scale)
    };
    let share = call()? * 255.0 / largest;
    if !(0.4..=1.001).contains(&share) {
        return Err(format!("a range of {share} of the largest number"));
    }
    Ok(Box::new(move || {
        black_box(call().ok());
    }))
}
