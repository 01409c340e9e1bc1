//! What the nodes make of the network's input: a tree of steps, each a layer applied to an earlier step.
//!
//! Exporters spread one layer over several nodes. So a value may also be something half finished: an input times and
//! plus constants that have not found their layer yet, a piece of Gelu's formula, a shape.

use std::rc::Rc;

use ndarray::{Array1, Array2};

use super::Tail;
use super::node::Node;
use super::tensor::{Origin, Tensor};
use crate::engine::CodeParams;
use crate::error::Result;
use crate::float::Float;
use crate::nn::{Layer, Linear};
use crate::normalize::{BatchNorm, LayerNorm};

/// One step from the input towards the output.
#[derive(Clone, Debug)]
pub(super) struct Step<F> {
    /// The step before; the input has none.
    pub(super) before: Option<usize>,
    pub(super) kind: Kind<F>,
    /// Lengths of the axes after the batch, as far as they are known.
    pub(super) features: Option<Vec<Option<usize>>>,
}

#[derive(Clone, Debug)]
pub(super) enum Kind<F> {
    Input,
    Layer(Layer<F>),
    /// A linear layer, and the codes of its weight `[out, in]` and its bias if the file has codes.
    Linear {
        linear: Linear<F>,
        weight: Option<Rc<Origin>>,
        bias: Option<Rc<Origin>>,
    },
    /// Rounded to codes and back.
    Codes(CodeParams),
    Tail(Tail),
}

/// A factor or a summand: one for all features, or one for each.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Coefficient {
    One(f64),
    Each(Rc<[f64]>),
}

impl Coefficient {
    fn with(&self, other: &Self, f: impl Fn(f64, f64) -> f64) -> Option<Self> {
        Some(match (self, other) {
            (Self::One(a), Self::One(b)) => Self::One(f(*a, *b)),
            (Self::One(a), Self::Each(b)) => Self::Each(b.iter().map(|&b| f(*a, b)).collect()),
            (Self::Each(a), Self::One(b)) => Self::Each(a.iter().map(|&a| f(a, *b)).collect()),
            (Self::Each(a), Self::Each(b)) if a.len() == b.len() => {
                Self::Each(a.iter().zip(b.iter()).map(|(&a, &b)| f(a, b)).collect())
            }
            _ => return None,
        })
    }

    fn is(&self, x: f64) -> bool {
        match self {
            Self::One(a) => *a == x,
            Self::Each(a) => a.iter().all(|&a| a == x),
        }
    }

    pub(super) fn one(&self) -> Option<f64> {
        match self {
            Self::One(a) => Some(*a),
            Self::Each(_) => None,
        }
    }

    /// Bytes in memory.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::One(_) => 0,
            Self::Each(all) => size_of_val::<[f64]>(all),
        }
    }

    fn array<F: Float>(&self, width: usize) -> Option<Array1<F>> {
        match self {
            Self::One(a) => Some(Array1::from_elem(width, F::of(*a))),
            Self::Each(a) if a.len() == width => Some(a.iter().map(|&a| F::of(a)).collect()),
            Self::Each(_) => None,
        }
    }
}

/// A step times and plus constants: `scale * x + shift`.
#[derive(Clone, Debug)]
pub(super) struct Flow {
    pub(super) at: usize,
    pub(super) scale: Coefficient,
    pub(super) shift: Coefficient,
}

impl Flow {
    pub(super) fn of(at: usize) -> Self {
        Self { at, scale: Coefficient::One(1.0), shift: Coefficient::One(0.0) }
    }

    pub(super) fn is_plain(&self) -> bool {
        self.scale.is(1.0) && self.shift.is(0.0)
    }

    /// The factor, if it is one for all features and nothing is added.
    pub(super) fn factor(&self) -> Option<f64> {
        self.scale.one().filter(|_| self.shift.is(0.0))
    }

    pub(super) fn times(&self, c: &Coefficient) -> Option<Self> {
        let scale = self.scale.with(c, |a, b| a * b)?;
        Some(Self { at: self.at, scale, shift: self.shift.with(c, |a, b| a * b)? })
    }

    pub(super) fn over(&self, c: &Coefficient) -> Option<Self> {
        let scale = self.scale.with(c, |a, b| a / b)?;
        Some(Self { at: self.at, scale, shift: self.shift.with(c, |a, b| a / b)? })
    }

    pub(super) fn plus(&self, c: &Coefficient) -> Option<Self> {
        Some(Self { at: self.at, scale: self.scale.clone(), shift: self.shift.with(c, |a, b| a + b)? })
    }
}

/// One length of a shape that was taken from a value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Length {
    Batch,
    Known(i64),
    Unknown,
}

/// What a name of the graph stands for.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Constant(Rc<Tensor>),
    Flow(Flow),
    /// A step rounded to codes, not yet turned back.
    Codes {
        at: usize,
        params: CodeParams,
    },
    Shape(Vec<Length>),
    Gate(super::gate::Gate),
    /// An output that nobody may read, as the mask of a dropout.
    Nothing,
}

/// The steps of a graph.
#[derive(Debug)]
pub(super) struct Steps<F> {
    steps: Vec<Step<F>>,
    /// Bytes of weights that may still be made.
    left: usize,
}

impl<F: Float> Steps<F> {
    /// Starts with the input; weights may take `limit` bytes more than the tensors of the file justify.
    pub(super) fn new(features: Option<Vec<Option<usize>>>, limit: usize) -> Self {
        Self { steps: vec![Step { before: None, kind: Kind::Input, features }], left: limit }
    }

    /// The lengths of the input's axes, once it is known which input that is.
    pub(super) fn set_input(&mut self, features: Option<Vec<Option<usize>>>) {
        if let Some(input) = self.steps.first_mut() {
            input.features = features;
        }
    }

    /// Raises the limit by what a tensor of the file needs on its way to a layer: itself, dequantized, transposed,
    /// and as a weight. A tensor that serves many layers has to be worth it to the file's size.
    pub(super) fn credit(&mut self, tensor: &Tensor) {
        let bytes = tensor.bytes().saturating_add(tensor.len().saturating_mul(12 + 2 * F::BYTES));
        self.left = self.left.saturating_add(bytes);
    }

    pub(super) fn get(&self, at: usize) -> &Step<F> {
        &self.steps[at]
    }

    /// Takes memory from what the file justifies.
    pub(super) fn spend(&mut self, node: Node<'_>, bytes: usize) -> Result<()> {
        self.left = self.left.checked_sub(bytes).ok_or_else(|| {
            node.malformed(format!("{bytes} bytes more of weights than a file of this size justifies"))
        })?;
        Ok(())
    }

    /// The number of features of a step, if it has one axis of them; of sequences, the last axis.
    pub(super) fn width(&self, at: usize) -> Option<usize> {
        self.get(at).features.as_ref().and_then(|features| features.last().copied().flatten())
    }

    /// Appends a step of `width` features; `None` if that many as before.
    pub(super) fn push(&mut self, before: usize, kind: Kind<F>, width: Option<usize>) -> usize {
        let mut features = self.get(before).features.clone();
        if let Some(width) = width {
            match features.as_mut().and_then(|features| features.last_mut()) {
                Some(last) => *last = Some(width),
                None => features = Some(vec![Some(width)]),
            }
        }
        self.steps.push(Step { before: Some(before), kind, features });
        self.steps.len() - 1
    }

    /// The same step with its features laid out anew.
    pub(super) fn reshaped(&mut self, at: usize, features: Vec<Option<usize>>) -> usize {
        let step = Step { features: Some(features), ..self.steps[at].clone() };
        self.steps.push(step);
        self.steps.len() - 1
    }

    /// Appends an activation, a norm or a dropout.
    pub(super) fn layer(&mut self, node: Node<'_>, at: usize, layer: Layer<F>) -> Result<usize> {
        self.not_after_tail(node, at)?;
        let width = match &layer {
            Layer::BatchNorm(norm) => Some(norm.features()),
            Layer::LayerNorm(norm) => Some(norm.features()),
            _ => None,
        };
        Ok(self.push(at, Kind::Layer(layer), width))
    }

    pub(super) fn not_after_tail(&self, node: Node<'_>, at: usize) -> Result<()> {
        match self.get(at).kind {
            Kind::Tail(tail) => Err(node.unsupported(format!("nothing may follow the {tail:?}"))),
            _ => Ok(()),
        }
    }

    /// Whether every step so far treats each number alone, so that it does not matter how they are laid out.
    pub(super) fn elementwise_so_far(&self, mut at: usize) -> bool {
        loop {
            let step = self.get(at);
            let alone = matches!(step.kind, Kind::Input | Kind::Codes(_) | Kind::Layer(Layer::Activation(_)));
            match step.before {
                _ if !alone => return false,
                None => return true,
                Some(before) => at = before,
            }
        }
    }

    /// The step that a flow is: constants that have not found a layer yet become part of the linear layer before,
    /// or a batch norm.
    pub(super) fn settle(&mut self, node: Node<'_>, flow: &Flow) -> Result<usize> {
        if flow.is_plain() {
            return Ok(flow.at);
        }
        self.not_after_tail(node, flow.at)?;
        let width = match (&flow.scale, &flow.shift, self.width(flow.at)) {
            (Coefficient::Each(all), _, None) | (_, Coefficient::Each(all), None) => Some(all.len()),
            (_, _, width) => width,
        };
        let width = width.ok_or_else(|| node.unsupported("the number of features is not known here"))?;
        // The width may be what the graph says of its input, with no tensor of that size in the file.
        self.spend(node, width.saturating_mul(4 * F::BYTES))?;
        let arrays = flow.scale.array::<F>(width).zip(flow.shift.array::<F>(width));
        let (scale, shift) = arrays.ok_or_else(|| {
            node.malformed(format!("constants of another length than the {width} features"))
        })?;
        let fail = |error| node.malformed(error);
        if let (Kind::Linear { linear, .. }, Some(before)) =
            (&self.get(flow.at).kind, self.get(flow.at).before)
        {
            let mut linear = linear.clone();
            self.spend(node, linear.weight().len() * F::BYTES)?;
            let bias = linear.bias().map_or_else(|| Array1::zeros(width), |bias| bias.to_owned());
            if !flow.scale.is(1.0) {
                let factors = scale.view().insert_axis(ndarray::Axis(1));
                let weight: Array2<F> = &linear.weight() * &factors;
                linear.set_weight(weight).map_err(fail)?;
            }
            linear.set_bias(Some(bias * scale + shift)).map_err(fail)?;
            return Ok(self.push(before, Kind::Linear { linear, weight: None, bias: None }, Some(width)));
        }
        if let (Kind::Layer(Layer::LayerNorm(norm)), Some(before)) =
            (&self.get(flow.at).kind, self.get(flow.at).before)
        {
            let (gamma, beta) = (&norm.gamma() * &scale, &norm.beta() * &scale + &shift);
            let norm = LayerNorm::from_parts(gamma, beta, norm.eps()).map_err(fail)?;
            return Ok(self.push(before, Kind::Layer(Layer::LayerNorm(norm)), Some(width)));
        }
        // A batch norm that has seen mean 0 and variance 1; its eps vanishes beside them.
        let (mean, var) = (Array1::zeros(width), Array1::ones(width));
        let norm = BatchNorm::from_parts(scale, shift, mean, var, 1e-30).map_err(fail)?;
        Ok(self.push(flow.at, Kind::Layer(Layer::BatchNorm(norm)), Some(width)))
    }

    /// The steps from the input to `at`, without the input.
    pub(super) fn path(&self, at: usize) -> Vec<&Step<F>> {
        let mut path = Vec::new();
        let mut step = self.get(at);
        while let Some(before) = step.before {
            path.push(step);
            step = self.get(before);
        }
        path.reverse();
        path
    }
}
