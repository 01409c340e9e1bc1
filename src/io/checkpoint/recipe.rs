//! What to do with which tensors.

use crate::error::{Error, Result};
use crate::io::safetensors::compressed::Packing;
use crate::io::trim::malformed;

/// Rules; the first whose pattern matches the name of a tensor decides. Tensors that no rule names are kept.
///
/// ```
/// use trimnet::io::checkpoint::{Action, Recipe};
///
/// let recipe = Recipe::from_json(
///     r#"{"rules": [
///         {"match": "lm_head.*", "do": "keep"},
///         {"match": "*.mlp.*.weight", "do": {"int4": {"group": 32}}},
///         {"match": "*.self_attn.*.weight", "do": {"int8": {}}},
///         {"match": "*.conv.weight", "do": {"prune": {"sparsity": 0.5}}}]}"#,
/// )?;
/// assert_eq!(recipe.action("model.layers.0.mlp.up_proj.weight"), Action::Int4 { group: Some(32) });
/// assert_eq!(recipe.action("model.norm.weight"), Action::Keep);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "RawRecipe")]
pub struct Recipe {
    rules: Vec<Rule>,
}

/// A pattern and what becomes of the tensors that it matches.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// `*` stands for any text, `?` for any one character, dots included.
    #[serde(rename = "match")]
    pub pattern: String,
    /// What to do.
    #[serde(rename = "do")]
    pub action: Action,
}

/// What becomes of a tensor. All but `Keep` are for floating-point tensors of two axes and more; integers want a matrix
/// `[out, in]` whose name ends with `.weight`, packed 8 bits one of 5 inputs and more. Whatever
/// else a rule matches is kept, and the report says why.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// Every bit as it was.
    Keep,
    /// Zeros in the place of the smallest `|w|`, as [`MagnitudePruner`](crate::prune::MagnitudePruner) chooses them.
    Prune {
        /// Fraction of zeros, 0..=1.
        sparsity: f64,
    },
    /// 8 bits, `scale = amax / 127` for each output or group of inputs.
    Int8 {
        /// Inputs that share a scale; none: one scale per output.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        group: Option<usize>,
        /// Bytes, or 32-bit words of four.
        #[serde(default = "plain")]
        packing: Packing,
    },
    /// 4 bits, `scale = amax / 7` for each output or group of inputs, in 32-bit words of eight.
    Int4 {
        /// Inputs that share a scale; none: one scale per output.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        group: Option<usize>,
    },
}

fn plain() -> Packing {
    Packing::Plain
}

impl Action {
    /// Its name in a recipe.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Prune { .. } => "prune",
            Self::Int8 { .. } => "int8",
            Self::Int4 { .. } => "int4",
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        match *self {
            Self::Prune { sparsity } if !(0.0..=1.0).contains(&sparsity) => {
                Err(Error::OutOfRange { name: "sparsity", value: sparsity, range: "0 <= sparsity <= 1" })
            }
            Self::Int8 { group: Some(0), .. } | Self::Int4 { group: Some(0) } => {
                Err(Error::OutOfRange { name: "group", value: 0.0, range: "1 or more" })
            }
            _ => Ok(()),
        }
    }
}

impl Recipe {
    /// A recipe of these rules.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a sparsity outside `0..=1` and a group of 0.
    pub fn new(rules: Vec<Rule>) -> Result<Self> {
        rules.iter().try_for_each(|rule| rule.action.check())?;
        Ok(Self { rules })
    }

    /// Reads a recipe.
    ///
    /// # Errors
    /// [`Error::Format`] for anything else, settings outside their range included.
    pub fn from_json(json: &str) -> Result<Self> {
        serde_json::from_str(json).map_err(|error| malformed(format!("not a recipe: {error}")))
    }

    /// The rules, first to last.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// What to do with a tensor of this name.
    pub fn action(&self, name: &str) -> Action {
        let rule = self.rules.iter().find(|rule| matches(rule.pattern.as_bytes(), name.as_bytes()));
        rule.map_or(Action::Keep, |rule| rule.action)
    }
}

#[derive(serde::Deserialize)]
#[serde(rename = "Recipe", deny_unknown_fields)]
struct RawRecipe {
    rules: Vec<Rule>,
}

impl TryFrom<RawRecipe> for Recipe {
    type Error = Error;

    fn try_from(raw: RawRecipe) -> Result<Self> {
        Self::new(raw.rules)
    }
}

/// Whether the pattern covers all of the name. On a mismatch only the last star takes one more character: what an earlier
/// one could take, the last one can take too, so the work is the product of the lengths at most.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == b'?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match &mut star {
                Some((at, from)) => {
                    *from += 1;
                    (p, n) = (*at + 1, *from);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("*", "a.b", true),
            ("a.?", "a.b", true),
            ("a.?", "a.", false),
            ("*.weight", "a.weight", true),
            ("*.weight", "a.weight_scale", false),
            ("a*b*c", "a-b-b-c-c", true),
            ("a*b*c", "a-b-c-d", false),
            ("layers.*.q*.weight", "layers.12.q_proj.weight", true),
            ("", "a", false),
            ("", "", true),
            ("a", "a.b", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn the_first_rule_decides() {
        let rule = |pattern: &str, action| Rule { pattern: pattern.into(), action };
        let int8 = Action::Int8 { group: None, packing: Packing::Plain };
        let recipe = Recipe::new(vec![rule("a.*", Action::Keep), rule("*", int8)]).unwrap();
        assert_eq!(recipe.action("a.weight"), Action::Keep);
        assert_eq!(recipe.action("b.weight"), int8);
        assert_eq!(Recipe::from_json(&serde_json::to_string(&recipe).unwrap()).unwrap(), recipe);
    }

    #[test]
    fn refuses_what_no_tensor_could_have() {
        for json in [
            r#"{"rules": [{"match": "*", "do": {"prune": {"sparsity": 1.5}}}]}"#,
            r#"{"rules": [{"match": "*", "do": {"int4": {"group": 0}}}]}"#,
            r#"{"rules": [{"match": "*", "do": {"int4": {"groups": 32}}}]}"#,
            r#"{"rules": [{"match": "*", "do": "shrink"}]}"#,
            r#"{"rules": [{"do": "keep"}]}"#,
            "[]",
        ] {
            assert!(Recipe::from_json(json).unwrap_err().to_string().contains("not a recipe"), "{json}");
        }
    }
}
