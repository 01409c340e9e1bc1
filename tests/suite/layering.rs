//! No arrow runs upwards: a module of `src` imports only from the layers below it.

use std::fs;
use std::path::{Path, PathBuf};

/// The layers, bottom to top. Modules on one line do not import each other.
const LAYERS: &[&[&str]] = &[
    &["error"],
    &["kernel"],
    &["float"],
    &["traits"],
    &["tensor"],
    &["prune", "quantize", "normalize", "regularize"],
    &["nn"],
    &["distill", "engine"],
    &["io"],
    &["report"],
    &["prelude"],
];

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The lines of code that the rule holds for: no comments (whose links may point anywhere), nothing after `#[cfg(test)]`.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Every module named after `crate::`, also inside `use crate::{a::B, c}`.
fn imports(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => names.push(rest),
            Some(group) => {
                let (mut depth, mut start) = (0, 0);
                for (i, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => {
                            names.push(&group[start..i]);
                            break;
                        }
                        '}' => depth -= 1,
                        ',' if depth == 0 => {
                            names.push(&group[start..i]);
                            start = i + 1;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    let word = |name: &&str| -> String {
        name.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    names.iter().map(word).filter(|name| !name.is_empty()).collect()
}

#[test]
fn no_module_imports_from_above() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut wrong = Vec::new();
    for file in &files {
        let path = file.strip_prefix(&root).unwrap();
        let module = path
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_str()
            .unwrap()
            .trim_end_matches(".rs")
            .to_owned();
        if module == "lib" {
            continue;
        }
        let Some(own) = layer(&module) else {
            wrong.push(format!("{}: module `{module}` has no layer", path.display()));
            continue;
        };
        for name in imports(&code(&fs::read_to_string(file).unwrap())) {
            match layer(&name) {
                Some(other) if other < own || name == module => {}
                Some(_) => wrong.push(format!(
                    "{}: imports `crate::{name}`, which lies above or beside `{module}`",
                    path.display()
                )),
                None => wrong.push(format!(
                    "{}: imports `crate::{name}` by its re-export; name the module",
                    path.display()
                )),
            }
        }
    }
    assert!(files.len() > 20, "found only {} sources", files.len());
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn imports_are_found_in_groups_and_nested() {
    let code = "use crate::{error::{Error, Result}, float};\nlet x = crate::tensor::Mask::new(k);";
    assert_eq!(imports(code), ["error", "float", "tensor"]);
}
