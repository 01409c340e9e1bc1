//! Layout: the ways in which exporters say that each row of a batch is one list of features.

use super::Operator;
use crate::error::Result;
use crate::float::Float;
use crate::io::onnx::flow::{Flow, Length, Value};

impl<F: Float> Operator<'_, '_, '_, F> {
    pub(super) fn cast(&mut self) -> Result<Value> {
        use crate::io::onnx::proto::data_type::{BFLOAT16, DOUBLE, FLOAT, FLOAT16, INT32, INT64, name};
        let to = i32::try_from(self.node.int("to", 0)?).unwrap_or(0);
        let shape = matches!(self.inputs.first(), Some(Some(Value::Shape(_))));
        match to {
            FLOAT | DOUBLE | FLOAT16 | BFLOAT16 if !shape => self.same(),
            INT32 | INT64 if shape => self.same(),
            _ => Err(self.node.unsupported(format!("a batch of numbers cast to {}", name(to)))),
        }
    }

    pub(super) fn flatten(&mut self) -> Result<Value> {
        let axis = self.node.int("axis", 1)?;
        let at = self.step(0)?;
        let rank = self.reader.steps.get(at).features.as_ref().map(|features| features.len() as i64);
        if axis != 1 && rank.is_none_or(|rank| axis != -rank) {
            return Err(self.node.unsupported(format!("axis {axis}; all axes but the batch are joined")));
        }
        self.flat(at, None)
    }

    /// All features on one axis, which is `width` long if that is known.
    pub(super) fn flat(&mut self, at: usize, width: Option<usize>) -> Result<Value> {
        let node = self.node;
        let features = self.reader.steps.get(at).features.clone();
        let known = features.as_ref().and_then(|features| {
            features.iter().try_fold(1_usize, |n, dim| dim.and_then(|dim| n.checked_mul(dim)))
        });
        if let (Some(known), Some(width)) = (known, width)
            && known != width
        {
            return Err(node.unsupported(format!("{known} features become rows of {width}")));
        }
        let width = known.or(width);
        match features {
            Some(features) if features.len() != 1 && !self.reader.steps.elementwise_so_far(at) => {
                Err(node.unsupported(format!("axes {features:?} are joined behind a layer")))
            }
            Some(features) if features.len() == 1 && features.first() == Some(&width) => {
                Ok(Value::Flow(Flow::of(at)))
            }
            _ => Ok(Value::Flow(Flow::of(self.reader.steps.reshaped(at, vec![width])))),
        }
    }

    pub(super) fn reshape(&mut self) -> Result<Value> {
        let node = self.node;
        let target: Vec<Length> = match (self.inputs.get(1), node.ints("shape")?) {
            (Some(Some(Value::Shape(shape))), _) => shape.clone(),
            (Some(Some(Value::Constant(shape))), _) => {
                let ints = shape.ints().ok_or_else(|| node.malformed("its shape is no list of integers"))?;
                ints.into_iter().map(Length::Known).collect()
            }
            (_, Some(ints)) => ints.iter().map(|&dim| Length::Known(dim)).collect(),
            _ => return Err(node.unsupported("its shape is neither a constant nor taken from a batch")),
        };
        let at = self.step(0)?;
        let last = match target.as_slice() {
            // The batch, then everything else.
            [Length::Batch | Length::Known(-1 | 0) | Length::Unknown, last] => *last,
            // A batch of one, fixed by the exporter.
            [Length::Known(1), last @ Length::Known(2..)] => *last,
            [Length::Known(-1) | Length::Batch] if self.reader.steps.width(at) == Some(1) => Length::Known(1),
            other => {
                return Err(node.unsupported(format!("the shape {other:?}; [batch, features] is read")));
            }
        };
        match last {
            Length::Known(-1 | 0) | Length::Unknown => self.flat(at, None),
            Length::Known(width) => {
                let width =
                    usize::try_from(width).map_err(|_| node.malformed(format!("a width of {width}")))?;
                self.flat(at, Some(width))
            }
            Length::Batch => Err(node.unsupported("the batch as features")),
        }
    }

    pub(super) fn squeeze(&mut self) -> Result<Value> {
        let at = self.step(0)?;
        if self.reader.steps.get(at).features.as_deref() == Some(&[Some(1)]) {
            return Ok(Value::Flow(Flow::of(at)));
        }
        Err(self.node.unsupported("more than one feature"))
    }

    /// Lengths of a shape.
    pub(super) fn pick(&mut self, op: &str) -> Result<Value> {
        let node = self.node;
        let Some(Some(Value::Shape(shape))) = self.inputs.first() else {
            return Err(node.unsupported("parts of a shape are read, not parts of a batch"));
        };
        let index = |i: i64| {
            let i = if i < 0 { i.saturating_add(shape.len() as i64) } else { i };
            usize::try_from(i).unwrap_or(0).min(shape.len())
        };
        let ints = |i: usize| -> Result<Vec<i64>> {
            let ints = self.constant(i)?.map_or(Some(vec![]), |tensor| tensor.ints());
            ints.ok_or_else(|| node.malformed(format!("its input {i} is no list of integers")))
        };
        let picked: Option<Vec<Length>> = if op == "Gather" {
            ints(1)?.iter().map(|&i| shape.get(index(i)).copied()).collect()
        } else {
            let (starts, ends) = match (node.ints("starts")?, node.ints("ends")?) {
                (Some(starts), Some(ends)) => (starts.to_vec(), ends.to_vec()),
                _ => (ints(1)?, ints(2)?),
            };
            let steps = ints(4)?;
            match (starts.as_slice(), ends.as_slice()) {
                ([start], [end]) if steps.iter().all(|&step| step == 1) => {
                    shape.get(index(*start)..index(*end)).map(<[Length]>::to_vec)
                }
                _ => None,
            }
        };
        picked.map(Value::Shape).ok_or_else(|| node.unsupported("the lengths that it picks"))
    }

    pub(super) fn concat(&mut self) -> Result<Value> {
        let node = self.node;
        let shapes = self.inputs.iter().flatten().any(|input| matches!(input, Value::Shape(_)));
        if !shapes {
            return self.concat_columns();
        }
        let mut all = Vec::new();
        for input in self.inputs.iter().flatten() {
            match input {
                Value::Shape(shape) => all.extend(shape),
                Value::Constant(tensor) => all.extend(
                    tensor
                        .ints()
                        .ok_or_else(|| node.malformed("a shape that is no list of integers"))?
                        .into_iter()
                        .map(Length::Known),
                ),
                _ => return Err(node.unsupported("a shape joined with a batch")),
            }
        }
        if all.len() > 8 {
            return Err(node.unsupported("a shape of more than 8 axes"));
        }
        Ok(Value::Shape(all))
    }
}
