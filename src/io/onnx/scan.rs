//! What a file would cost in memory, found before anything is allocated.
//!
//! On the wire an empty message is two bytes, in memory hundreds; a number of a packed list is one byte, in memory
//! eight. So a small file could ask for a lot: this walk over the bytes adds it up, and a file that asks for more
//! than its size justifies is refused.

use std::mem::size_of;

use super::proto;

/// The messages, as far as they are read; all others are skipped by the decoder.
#[derive(Clone, Copy, Debug)]
enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Sparse,
    Value,
    Type,
    TensorType,
    Shape,
    Dimension,
    Opset,
    Entry,
}

/// What a field holds.
#[derive(Clone, Copy, Debug)]
enum Field {
    Message(Message),
    /// A list of strings: each has a header of its own.
    Strings,
    /// Bytes or one string.
    Bytes,
    /// A list of numbers that take this many bytes each.
    Numbers(usize),
    /// Not read, or part of the message itself.
    Other,
}

impl Message {
    fn size(self) -> usize {
        match self {
            Self::Model => size_of::<proto::ModelProto>(),
            Self::Graph => size_of::<proto::GraphProto>(),
            Self::Node => size_of::<proto::NodeProto>(),
            Self::Attribute => size_of::<proto::AttributeProto>(),
            Self::Tensor => size_of::<proto::TensorProto>(),
            Self::Sparse => size_of::<proto::SparseTensorProto>(),
            Self::Value => size_of::<proto::ValueInfoProto>(),
            Self::Type => size_of::<proto::TypeProto>(),
            Self::TensorType => size_of::<proto::TensorTypeProto>(),
            Self::Shape => size_of::<proto::ShapeProto>(),
            Self::Dimension => size_of::<proto::DimensionProto>(),
            Self::Opset => size_of::<proto::OperatorSetIdProto>(),
            Self::Entry => size_of::<proto::StringStringEntryProto>(),
        }
    }

    fn field(self, tag: u64) -> Field {
        use Field::{Bytes, Numbers, Other, Strings};
        let message = Field::Message;
        match (self, tag) {
            (Self::Model, 7) => message(Self::Graph),
            (Self::Model, 8) => message(Self::Opset),
            (Self::Model, 14) | (Self::Tensor, 13) => message(Self::Entry),
            (Self::Graph, 1) => message(Self::Node),
            (Self::Graph, 5) | (Self::Attribute, 5) | (Self::Sparse, 1) => message(Self::Tensor),
            (Self::Graph, 11 | 12) => message(Self::Value),
            (Self::Graph, 15) => message(Self::Sparse),
            (Self::Node, 5) => message(Self::Attribute),
            (Self::Value, 2) => message(Self::Type),
            (Self::Type, 1) => message(Self::TensorType),
            (Self::TensorType, 2) => message(Self::Shape),
            (Self::Shape, 1) => message(Self::Dimension),
            (Self::Node, 1 | 2) => Strings,
            (Self::Tensor, 4 | 5) | (Self::Attribute, 7) => Numbers(4),
            (Self::Tensor, 1 | 7 | 10) | (Self::Attribute, 8) => Numbers(8),
            (Self::Model, 2 | 3)
            | (Self::Graph, 2)
            | (Self::Node, 3 | 4 | 7)
            | (Self::Attribute, 1 | 4)
            | (Self::Tensor, 8 | 9)
            | (Self::Value | Self::Opset, 1)
            | (Self::Dimension, 2)
            | (Self::Entry, 1 | 2) => Bytes,
            _ => Other,
        }
    }
}

/// Bytes of memory that decoding the model takes, at most; growing lists count twice.
pub(super) fn cost(model: &[u8]) -> Result<usize, String> {
    message_cost(Message::Model, model, 0)
}

fn message_cost(message: Message, bytes: &[u8], start: usize) -> Result<usize, String> {
    let mut cost = 2 * message.size();
    let mut at = 0;
    while at < bytes.len() {
        let key = varint(bytes, &mut at, start)?;
        let (tag, wire) = (key >> 3, key & 7);
        let field = message.field(tag);
        match wire {
            0 => {
                varint(bytes, &mut at, start)?;
            }
            1 => at += 8,
            5 => at += 4,
            2 => {
                let length = varint(bytes, &mut at, start)?;
                let end = usize::try_from(length).ok().and_then(|length| at.checked_add(length));
                let content = end.and_then(|end| bytes.get(at..end)).ok_or_else(|| {
                    format!(
                        "{message:?} field {tag} at byte {} claims {length} bytes, {} are left",
                        start + at,
                        bytes.len() - at
                    )
                })?;
                cost += match field {
                    Field::Message(inner) => message_cost(inner, content, start + at)?,
                    Field::Strings => 2 * size_of::<String>() + content.len(),
                    Field::Bytes => content.len(),
                    // Each varint ends with a byte below 128; fixed-width numbers have at least four bytes.
                    Field::Numbers(4) if tag == 4 || tag == 7 => 2 * content.len(),
                    Field::Numbers(8) if tag == 10 => 2 * content.len(),
                    Field::Numbers(size) => 2 * size * content.iter().filter(|&&byte| byte < 128).count(),
                    Field::Other => 0,
                };
                at += content.len();
            }
            // Groups: long gone from the format; the decoder skips them within its recursion limit.
            3 | 4 => {}
            _ => return Err(format!("wire type {wire} at byte {} does not exist", start + at)),
        }
        if let (Field::Numbers(size), true) = (field, wire != 2) {
            cost += 2 * size;
        }
    }
    if at > bytes.len() {
        return Err(format!("{message:?} ends in the middle of a number, at byte {}", start + bytes.len()));
    }
    Ok(cost)
}

fn varint(bytes: &[u8], at: &mut usize, start: usize) -> Result<u64, String> {
    let begin = start + *at;
    let mut value = 0_u64;
    for shift in (0..70).step_by(7) {
        let byte = *bytes.get(*at).ok_or_else(|| format!("cut off inside the number at byte {begin}"))?;
        *at += 1;
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte < 128 {
            return Ok(value);
        }
    }
    Err(format!("the number at byte {begin} does not end after ten bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    #[test]
    fn empty_messages_cost_what_they_become() {
        // Ten thousand empty nodes: 20 kB on the wire.
        let graph = [0x0a, 0].repeat(10_000);
        let mut model = vec![0x3a];
        prost::encode_length_delimiter(graph.len(), &mut model).unwrap();
        model.extend(graph);
        assert!(cost(&model).unwrap() > 10_000 * size_of::<proto::NodeProto>());
    }

    #[test]
    fn a_usual_model_costs_a_few_times_its_size() {
        let tensor = proto::TensorProto { raw_data: vec![1; 100_000], ..Default::default() };
        let graph = proto::GraphProto { initializer: vec![tensor], ..Default::default() };
        let bytes = proto::ModelProto { graph: Some(graph), ..Default::default() }.encode_to_vec();
        assert!((100_000..105_000).contains(&cost(&bytes).unwrap()));
    }

    #[test]
    fn lies_and_cuts_are_named() {
        assert!(cost(&[0x3a, 0x7f, 0]).unwrap_err().contains("claims 127 bytes, 1 are left"));
        assert!(cost(&[0x3a]).unwrap_err().contains("cut off"));
        assert!(cost(&[0x80; 12]).unwrap_err().contains("does not end"));
        assert!(cost(&[0x0f]).unwrap_err().contains("wire type 7"));
        assert!(cost(&[0x0d, 1]).unwrap_err().contains("in the middle"));
    }
}
