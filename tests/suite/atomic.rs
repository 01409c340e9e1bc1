//! A process that dies while it writes leaves the file as it was, or whole.
#![cfg(feature = "gguf")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use trimnet::io::gguf::{Gguf, GgufTensor, GgufType};
use trimnet::io::safetensors::{Dtype, SafeTensors, Tensor};
use trimnet::ndarray::Array2;

/// 4 MB of one number.
fn numbers(value: f32) -> Array2<f32> {
    Array2::from_elem((1024, 1024), value)
}

fn safetensors(value: f32) -> SafeTensors {
    let mut file = SafeTensors::new();
    file.insert("w", Tensor::from_floats(numbers(value).view(), Dtype::F32).unwrap());
    file
}

fn gguf(value: f32) -> Gguf {
    let mut file = Gguf::new("trimnet");
    file.push("w", GgufTensor::from_floats(numbers(value).view(), GgufType::F32).unwrap());
    file
}

/// What the test below runs in a process of its own, until it is killed.
#[test]
#[ignore = "a part of another test"]
fn child() {
    let Ok(folder) = std::env::var("TRIMNET_FOLDER") else { return };
    let folder = Path::new(&folder);
    let files = [1.0, 2.0].map(|value| (safetensors(value), gguf(value)));
    loop {
        for (safetensors, gguf) in &files {
            safetensors.save(folder.join("a.safetensors")).unwrap();
            gguf.save(folder.join("a.gguf")).unwrap();
        }
    }
}

#[test]
fn a_killed_writer_never_leaves_half_a_file_under_the_final_name() {
    let folder: PathBuf = std::env::temp_dir().join(format!("trimnet-kill-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let expected = [1.0, 2.0].map(|value| (safetensors(value), gguf(value)));
    for (safetensors, gguf) in &expected[..1] {
        safetensors.save(folder.join("a.safetensors")).unwrap();
        gguf.save(folder.join("a.gguf")).unwrap();
    }
    let mut half_done = 0;
    for round in 0..12 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "atomic::child", "--ignored"])
            .env("TRIMNET_FOLDER", &folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // It is at work as soon as there is a temporary file; the kill comes at another moment of its work each time.
        let temporary = || {
            let names = fs::read_dir(&folder).unwrap().filter_map(|e| e.ok()?.file_name().into_string().ok());
            names.filter(|name| name.ends_with(".tmp")).collect::<Vec<_>>()
        };
        while temporary().is_empty() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(round * 3));
        child.kill().unwrap();
        child.wait().unwrap();
        for name in temporary() {
            half_done += 1;
            fs::remove_file(folder.join(name)).unwrap();
        }
        let read = (
            SafeTensors::load(folder.join("a.safetensors")).unwrap(),
            Gguf::load(folder.join("a.gguf")).unwrap(),
        );
        assert!(
            expected.iter().any(|(file, _)| *file == read.0)
                && expected.iter().any(|(_, file)| *file == read.1)
        );
    }
    assert!(half_done > 0, "no kill met a write");
    fs::remove_dir_all(&folder).unwrap();
}
