//! Nodes whose inputs are all known: computed while the file is read.

use std::rc::Rc;

use super::node::Node;
use super::proto::data_type;
use super::tensor::{External, Numbers, Origin, Tensor};
use crate::error::Result;

/// The value of a `Constant` node.
pub(super) fn constant(node: Node<'_>, external: &mut External) -> Result<Tensor> {
    if let Some(proto) = node.tensor("value")? {
        return Tensor::read(proto, external).map_err(|reason| node.malformed(reason));
    }
    if node.has("value_float") {
        return Ok(Tensor::new(vec![], Numbers::F32(vec![node.float("value_float", 0.0)?])));
    }
    if node.has("value_floats") {
        let floats = node.floats("value_floats")?.to_vec();
        return Ok(Tensor::new(vec![floats.len()], Numbers::F32(floats)));
    }
    if node.has("value_int") {
        return Ok(Tensor::new(vec![], Numbers::I64(vec![node.int("value_int", 0)?])));
    }
    if let Some(ints) = node.ints("value_ints")? {
        return Ok(Tensor::new(vec![ints.len()], Numbers::I64(ints.to_vec())));
    }
    Err(node.unsupported("constants of tensors, floats and integers are read"))
}

/// The output of any other node, or `None` if this module does not know the operator.
pub(super) fn fold(node: Node<'_>, inputs: &[Option<Rc<Tensor>>]) -> Result<Option<Rc<Tensor>>> {
    let input = |i: usize| inputs.get(i).and_then(Option::as_ref);
    let first = || input(0).ok_or_else(|| node.malformed("it has no input"));
    if !node.is_standard() {
        return Ok(None);
    }
    Ok(Some(match node.op() {
        "Identity" | "Dropout" => first()?.clone(),
        "Cast" => Rc::new(cast(node, first()?)?),
        "Transpose" => Rc::new(transpose(node, first()?)?),
        "Reshape" => {
            let shape = input(1).and_then(|shape| shape.ints());
            let shape = shape.ok_or_else(|| node.malformed("its shape is no list of integers"))?;
            Rc::new(reshape(node, first()?, &shape)?)
        }
        "Squeeze" | "Unsqueeze" => {
            let axes = match (node.ints("axes")?, input(1)) {
                (Some(axes), _) => Some(axes.to_vec()),
                (None, Some(axes)) => axes.ints(),
                (None, None) => None,
            };
            Rc::new(with_axes(node, first()?, axes)?)
        }
        "Concat" => Rc::new(concat(node, inputs)?),
        "Gather" => Rc::new(gather(node, first()?, input(1))?),
        "Shape" => {
            let dims = first()?.dims.iter().map(|&dim| dim as i64).collect::<Vec<_>>();
            Rc::new(Tensor::new(vec![dims.len()], Numbers::I64(dims)))
        }
        "DequantizeLinear" => Rc::new(dequantize(node, first()?, input(1), input(2))?),
        "Add" | "Sub" | "Mul" | "Div" | "Sqrt" | "Neg" => {
            Rc::new(arithmetic(node, first()?, input(1).map(Rc::as_ref))?)
        }
        _ => return Ok(None),
    }))
}

fn cast(node: Node<'_>, x: &Tensor) -> Result<Tensor> {
    let to = node.int("to", 0)?;
    let to = i32::try_from(to).unwrap_or(0);
    let numbers = match (&x.numbers, to) {
        (Numbers::F32(_), data_type::FLOAT) | (Numbers::F64(_), data_type::DOUBLE) => return Ok(x.clone()),
        (Numbers::F64(x), data_type::FLOAT) => Numbers::F32(x.iter().map(|&x| x as f32).collect()),
        (Numbers::F32(x), data_type::DOUBLE) => Numbers::F64(x.iter().map(|&x| x.into()).collect()),
        (Numbers::I64(_), data_type::INT64) | (Numbers::I32(_), data_type::INT32) => return Ok(x.clone()),
        (Numbers::I32(x), data_type::INT64) => Numbers::I64(x.iter().map(|&x| x.into()).collect()),
        (Numbers::I64(x), data_type::INT32) => Numbers::I32(x.iter().map(|&x| x as i32).collect()),
        (Numbers::I64(x), data_type::FLOAT) => Numbers::F32(x.iter().map(|&x| x as f32).collect()),
        _ => {
            return Err(node.unsupported(format!("a constant cast to {} is not read", data_type::name(to))));
        }
    };
    Ok(Tensor::new(x.dims.clone(), numbers))
}

/// Elements in another order.
fn permuted(numbers: &Numbers, order: &[usize]) -> Numbers {
    fn of<T: Copy>(x: &[T], order: &[usize]) -> Vec<T> {
        order.iter().filter_map(|&i| x.get(i).copied()).collect()
    }
    match numbers {
        Numbers::F32(x) => Numbers::F32(of(x, order)),
        Numbers::F64(x) => Numbers::F64(of(x, order)),
        Numbers::I8(x) => Numbers::I8(of(x, order)),
        Numbers::U8(x) => Numbers::U8(of(x, order)),
        Numbers::I32(x) => Numbers::I32(of(x, order)),
        Numbers::I64(x) => Numbers::I64(of(x, order)),
    }
}

fn transpose(node: Node<'_>, x: &Tensor) -> Result<Tensor> {
    let usual = node.ints("perm")?.is_none_or(|perm| perm == [1, 0]);
    if x.dims.len() < 2 && node.ints("perm")?.is_none_or(|perm| perm == [0] || perm.is_empty()) {
        return Ok(x.clone());
    }
    let ([rows, columns], true) = (x.dims.as_slice(), usual) else {
        return Err(
            node.unsupported(format!("a constant of shape {:?} is not a matrix to transpose", x.dims))
        );
    };
    let (rows, columns) = (*rows, *columns);
    if x.len() == 0 {
        // The other axis may be of any length.
        return Ok(Tensor::new(vec![columns, rows], x.numbers.clone()));
    }
    let order: Vec<usize> = (0..columns).flat_map(|c| (0..rows).map(move |r| r * columns + c)).collect();
    let origin = x.origin.as_ref().map(|origin| {
        Rc::new(Origin {
            codes: permuted(&origin.codes, &order),
            scales: origin.scales.clone(),
            axis: 1 - origin.axis.min(1),
        })
    });
    Ok(Tensor { dims: vec![columns, rows], numbers: permuted(&x.numbers, &order), origin })
}

fn reshape(node: Node<'_>, x: &Tensor, shape: &[i64]) -> Result<Tensor> {
    let n = x.len();
    let mut dims = Vec::with_capacity(shape.len());
    for (i, &dim) in shape.iter().enumerate() {
        dims.push(match dim {
            0 if node.int("allowzero", 0)? == 0 => x.dims.get(i).copied(),
            -1 => {
                let rest = shape
                    .iter()
                    .filter(|&&dim| dim != -1)
                    .try_fold(1_usize, |n, &dim| n.checked_mul(usize::try_from(dim).ok()?));
                rest.filter(|&rest| rest != 0 && n.is_multiple_of(rest)).map(|rest| n / rest)
            }
            dim => usize::try_from(dim).ok(),
        });
    }
    let dims: Option<Vec<usize>> = dims.into_iter().collect();
    let fits = |dims: &Vec<usize>| dims.iter().try_fold(1_usize, |n, &dim| n.checked_mul(dim)) == Some(n);
    match dims.filter(fits) {
        Some(dims) => Ok(Tensor::new(dims, x.numbers.clone())),
        None => Err(node.malformed(format!("a constant of shape {:?} cannot become {shape:?}", x.dims))),
    }
}

fn with_axes(node: Node<'_>, x: &Tensor, axes: Option<Vec<i64>>) -> Result<Tensor> {
    let mut dims = x.dims.clone();
    let squeeze = node.op() == "Squeeze";
    let wrong = || node.malformed(format!("axes {axes:?} do not fit the shape {:?}", x.dims));
    match &axes {
        None if squeeze => dims.retain(|&dim| dim != 1),
        None => return Err(wrong()),
        Some(axes) => {
            let rank = if squeeze { dims.len() } else { dims.len() + axes.len() } as i64;
            let mut axes: Vec<i64> =
                axes.iter().map(|&a| if a < 0 { a.saturating_add(rank) } else { a }).collect();
            axes.sort_unstable();
            if squeeze {
                axes.reverse();
            }
            for axis in axes {
                let axis = usize::try_from(axis).map_err(|_| wrong())?;
                if squeeze {
                    dims.get(axis).filter(|&&dim| dim == 1).ok_or_else(wrong)?;
                    dims.remove(axis);
                } else if axis <= dims.len() && dims.len() < 8 {
                    dims.insert(axis, 1);
                } else {
                    return Err(wrong());
                }
            }
        }
    }
    Ok(Tensor::new(dims, x.numbers.clone()))
}

fn concat(node: Node<'_>, inputs: &[Option<Rc<Tensor>>]) -> Result<Tensor> {
    let mut all = Vec::new();
    for input in inputs.iter().flatten() {
        let ints = input.ints().filter(|_| input.dims.len() == 1);
        all.extend(ints.ok_or_else(|| node.unsupported("of constants, only lists of integers are joined"))?);
    }
    if all.len() > 8 {
        return Err(node.unsupported("a shape of more than 8 axes"));
    }
    Ok(Tensor::new(vec![all.len()], Numbers::I64(all)))
}

fn gather(node: Node<'_>, x: &Tensor, index: Option<&Rc<Tensor>>) -> Result<Tensor> {
    let list = x.ints().filter(|_| x.dims.len() == 1);
    let index = index.and_then(|index| index.ints());
    let (Some(list), Some(index)) = (list, index) else {
        return Err(node.unsupported("of constants, only lists of integers are picked from"));
    };
    let pick = |&i: &i64| {
        let i = if i < 0 { i.saturating_add(list.len() as i64) } else { i };
        usize::try_from(i).ok().and_then(|i| list.get(i).copied())
    };
    let picked: Option<Vec<i64>> = index.iter().map(pick).collect();
    let picked =
        picked.ok_or_else(|| node.malformed(format!("index {index:?} of {} numbers", list.len())))?;
    let dims = if picked.len() == 1 { vec![] } else { vec![picked.len()] };
    Ok(Tensor::new(dims, Numbers::I64(picked)))
}

fn dequantize(
    node: Node<'_>,
    x: &Tensor,
    scale: Option<&Rc<Tensor>>,
    zero_point: Option<&Rc<Tensor>>,
) -> Result<Tensor> {
    let scale = scale.ok_or_else(|| node.malformed("it has no scale"))?;
    // From here on, lengths of axes and their products are no larger than the number of codes.
    if x.len() == 0 {
        return Err(node.malformed(format!("its codes of shape {:?} are empty", x.dims)));
    }
    let scales: Vec<f32> = match &scale.numbers {
        Numbers::F32(scales) => scales.clone(),
        _ => return Err(node.unsupported("scales of another type than FLOAT")),
    };
    if let Some(bad) = scales.iter().find(|scale| !(scale.is_finite() && **scale > 0.0)) {
        return Err(node.malformed(format!("a scale of {bad}; scales are finite and above 0")));
    }
    let codes: Vec<i32> = match &x.numbers {
        Numbers::I8(x) => x.iter().map(|&x| x.into()).collect(),
        Numbers::U8(x) => x.iter().map(|&x| x.into()).collect(),
        Numbers::I32(x) => x.clone(),
        _ => return Err(node.unsupported("codes of int8, uint8, int4, uint4 and int32 are read")),
    };
    let zeros: Vec<i32> = match zero_point.map(|zero| &zero.numbers) {
        None => vec![0; scales.len()],
        Some(Numbers::I8(x)) => x.iter().map(|&x| x.into()).collect(),
        Some(Numbers::U8(x)) => x.iter().map(|&x| x.into()).collect(),
        Some(Numbers::I32(x)) => x.clone(),
        Some(_) => return Err(node.malformed("zero points of another type than the codes")),
    };
    if zeros.len() != scales.len() {
        return Err(node.malformed(format!("{} scales and {} zero points", scales.len(), zeros.len())));
    }
    let rank = x.dims.len() as i64;
    let axis = node.int("axis", 1)?;
    let axis = usize::try_from(if axis < 0 { axis.saturating_add(rank) } else { axis }).unwrap_or(usize::MAX);
    let block = node.int("block_size", 0)?;
    // The scale of each element: its place before, on, and after the axis.
    let one = scales.len() == 1 && block == 0;
    let (length, inner) = match x.dims.get(axis) {
        _ if one => (1, x.len().max(1)),
        Some(&length) => (length, x.dims[axis + 1..].iter().product()),
        None => return Err(node.malformed(format!("axis {axis} of a tensor of shape {:?}", x.dims))),
    };
    let block = usize::try_from(block).map_err(|_| node.malformed(format!("a block size of {block}")))?;
    let outer = if one { 1 } else { x.dims[..axis].iter().product() };
    let expected = match block {
        _ if one => 1,
        0 => length,
        block => outer * length.div_ceil(block) * inner,
    };
    if scales.len() != expected {
        return Err(node.malformed(format!("{} scales, {expected} are needed", scales.len())));
    }
    let place = |i: usize| match block {
        _ if one => 0,
        0 => i / inner % length,
        block => {
            (i / inner / length * length.div_ceil(block) + i / inner % length / block) * inner + i % inner
        }
    };
    let value = |(i, &code): (usize, &i32)| {
        let place = place(i);
        code.saturating_sub(zeros[place]) as f32 * scales[place]
    };
    let numbers = Numbers::F32(codes.iter().enumerate().map(value).collect());
    let plain = block == 0 && zeros.iter().all(|&zero| zero == 0);
    let kept = plain && matches!(x.numbers, Numbers::I8(_) | Numbers::I32(_));
    let axis = if one { 0 } else { axis };
    let origin = kept.then(|| Rc::new(Origin { codes: x.numbers.clone(), scales, axis }));
    Ok(Tensor { dims: x.dims.clone(), numbers, origin })
}

fn arithmetic(node: Node<'_>, a: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let floats =
        |x: &Tensor| x.floats().ok_or_else(|| node.unsupported("arithmetic on constants that are no floats"));
    let x = floats(a)?;
    let f = |a: f64, b: f64| match node.op() {
        "Add" => a + b,
        "Sub" => a - b,
        "Mul" => a * b,
        "Div" => a / b,
        "Sqrt" => a.sqrt(),
        _ => -a,
    };
    let (dims, y) = match b {
        None => (a.dims.clone(), x.iter().map(|&x| f(x, 0.0)).collect::<Vec<f64>>()),
        Some(b) => {
            let y = floats(b)?;
            match (x.as_slice(), y.as_slice()) {
                (x, y) if a.dims == b.dims => {
                    (a.dims.clone(), x.iter().zip(y).map(|(&x, &y)| f(x, y)).collect())
                }
                (x, [y]) if b.dims.len() <= a.dims.len() => {
                    (a.dims.clone(), x.iter().map(|&x| f(x, *y)).collect())
                }
                ([x], y) if a.dims.len() <= b.dims.len() => {
                    (b.dims.clone(), y.iter().map(|&y| f(*x, y)).collect())
                }
                _ => {
                    let reason = format!("constants of shapes {:?} and {:?}", a.dims, b.dims);
                    return Err(node.unsupported(reason));
                }
            }
        }
    };
    Ok(Tensor::new(
        dims,
        match a.numbers {
            Numbers::F32(_) => Numbers::F32(y.into_iter().map(|y| y as f32).collect()),
            _ => Numbers::F64(y),
        },
    ))
}
