//! Which tensor belongs to which layer: the names of a PyTorch state dict.

use std::collections::BTreeSet;

use super::file::SafeTensors;
use crate::error::Result;
use crate::io::trim::malformed;

/// How the modules of a network are called: `0`, `1`, `2`, .. as in `nn.Sequential`, or by names of their own; the tensors
/// are then `0.weight`, `0.bias`, `1.running_mean`.
///
/// ```
/// use trimnet::io::safetensors::Names;
///
/// let names = Names::sequential().with_prefix("module.net.");        // module.net.0.weight
/// let names = Names::of_modules(["fc1", "norm", "fc2"]);             // fc1.weight
/// # let _ = names;
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Names {
    prefix: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    modules: Option<Vec<String>>,
}

impl Names {
    /// The number of the layer within the network.
    pub fn sequential() -> Self {
        Self::default()
    }

    /// One name for each layer that has tensors (linear, batch norm, layer norm), first to last.
    pub fn of_modules<S: Into<String>>(modules: impl IntoIterator<Item = S>) -> Self {
        Self { prefix: String::new(), modules: Some(modules.into_iter().map(Into::into).collect()) }
    }

    /// The modules of a file, in the order of their numbers: for a `nn.Sequential` in which modules without
    /// tensors stand that the network here has not, as a `Flatten` at its begin.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) if a tensor that begins with `prefix` has no number after it.
    pub fn numbered_in(file: &SafeTensors, prefix: &str) -> Result<Self> {
        let mut numbers = BTreeSet::new();
        for name in file.names() {
            let Some(rest) = name.strip_prefix(prefix) else { continue };
            let number = rest.split('.').next().and_then(|number| number.parse::<u64>().ok());
            let number = number.ok_or_else(|| {
                malformed(format!(
                    "tensor {name:?} has no number after {prefix:?}: its modules need their names"
                ))
            })?;
            numbers.insert(number);
        }
        Ok(Self::of_modules(numbers.iter().map(u64::to_string)).with_prefix(prefix))
    }

    /// A text before every name, with its dot: `module.`, `_orig_mod.`, `model.head.`.
    #[must_use]
    pub fn with_prefix(self, prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), ..self }
    }

    /// The text before every name.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The module of the layer at `layer`, the `nth` of those with tensors.
    pub(super) fn module(&self, layer: usize, nth: usize) -> Result<String> {
        match &self.modules {
            None => Ok(format!("{}{layer}", self.prefix)),
            Some(modules) => match modules.get(nth) {
                Some(module) => Ok(format!("{}{module}", self.prefix)),
                None => Err(malformed(format!(
                    "layer {layer} is number {nth} of those with tensors, there are names for {}",
                    modules.len()
                ))),
            },
        }
    }

    /// Refuses names that no layer asked for.
    pub(super) fn check_used(&self, used: usize) -> Result<()> {
        match &self.modules {
            Some(modules) if modules.len() != used => Err(malformed(format!(
                "names for {} layers, the network has {used} with tensors",
                modules.len()
            ))),
            _ => Ok(()),
        }
    }
}
