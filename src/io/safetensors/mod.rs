//! safetensors: the file of PyTorch's world, for networks, tensors and quantized tensors.
//!
//! Bottom to top: `dtype`, `header` (what is where, believed only after checks), `tensor` (bytes as numbers), `file` (all of
//! it), `names` and `architecture` (what a state dict is called and what it does not say), `network`, `compressed`
//! (quantized tensors in the layout of the `compressed-tensors` package).
//!
//! A `.pt` file is a program; this crate does not read it. In Python:
//! `safetensors.torch.save_file(model.state_dict(), "model.safetensors")`.

mod architecture;
pub mod compressed;
mod dtype;
mod file;
pub(crate) mod header;
mod names;
mod network;
pub(crate) mod tensor;

pub use architecture::Architecture;
pub use dtype::Dtype;
pub use file::SafeTensors;
pub use names::Names;
pub use network::{load_mlp, save_mlp};
pub use tensor::{Tensor, TensorView};

use crate::error::Error;

/// What an error says, to be part of another one: without the place for the name of a file.
pub(crate) fn reason(error: Error) -> String {
    match error {
        Error::Format { reason, .. } => reason,
        other => other.to_string(),
    }
}
