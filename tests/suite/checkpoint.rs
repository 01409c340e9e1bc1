//! Checkpoints: the same bytes however they are made, whatever happens on the way, in little memory.
#![cfg(feature = "mmap")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use trimnet::io::checkpoint::{
    Action, Checkpoint, Job, Options, Plan, Progress, Recipe, compress_checkpoint, compress_shard, merge,
};
use trimnet::io::safetensors::{Dtype, SafeTensors, Tensor};
use trimnet::kernel::Pool;
use trimnet::ndarray::Array2;
use trimnet::quantize::{Scheme, UniformQuantizer};
use trimnet::{Compressed, Compressor};

const RECIPE: &str = r#"{"rules": [
    {"match": "*.0.weight", "do": {"int8": {}}},
    {"match": "*.1.weight", "do": {"int4": {"group": 32}}},
    {"match": "*.2.weight", "do": {"prune": {"sparsity": 0.7}}},
    {"match": "*.3.*", "do": {"int4": {}}},
    {"match": "*.4.weight", "do": {"int8": {"group": 16, "packing": "packed"}}}]}"#;

fn recipe() -> Recipe {
    Recipe::from_json(RECIPE).unwrap()
}

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("trimnet-checkpoint-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn numbers(rows: usize, columns: usize, seed: usize) -> Array2<f32> {
    Array2::from_shape_fn((rows, columns), |(i, j)| {
        let k = (i * columns + j + seed * 977) as u32;
        (k.wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0
    })
}

/// Two files and an index; five layers of different types in each, with biases and what is not floating-point.
fn write_sharded(folder: &Path, rows: usize) {
    let mut weights = BTreeMap::new();
    for part in 0..2 {
        let mut file = SafeTensors::new();
        for layer in 0..6 {
            let dtype = [Dtype::F32, Dtype::Bf16, Dtype::F16][(part + layer) % 3];
            let w = numbers(rows + layer, 96, part * 10 + layer);
            let name = format!("block{part}.{layer}");
            file.insert(format!("{name}.weight"), Tensor::from_floats(w.view(), dtype).unwrap());
            file.insert(format!("{name}.bias"), Tensor::from_floats(w.column(0), dtype).unwrap());
        }
        let ids = Array2::from_shape_fn((3, 5), |(i, j)| (i * j) as i32);
        file.insert(format!("block{part}.3.ids"), Tensor::from_codes(ids.view(), Dtype::I64).unwrap());
        let name = format!("model-{part}.safetensors");
        weights.extend(file.names().map(|tensor| (tensor.to_string(), name.clone())));
        file.save(folder.join(&name)).unwrap();
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": weights});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    fs::write(folder.join("config.json"), r#"{"hidden_size": 96}"#).unwrap();
}

fn options(threads: usize, max_shard_bytes: u64) -> Options {
    Options { max_shard_bytes, pool: Pool::new(threads) }
}

/// Every file of a folder.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

/// All tensors of a folder.
fn tensors(folder: &Path) -> SafeTensors {
    let mut all = SafeTensors::new();
    for name in contents(folder).keys().filter(|name| name.ends_with(".safetensors")) {
        for (name, tensor) in SafeTensors::load(folder.join(name)).unwrap().iter() {
            all.insert(name, tensor.to_tensor());
        }
    }
    all
}

#[test]
fn the_bytes_do_not_depend_on_threads_or_shards() {
    let base = folder("threads");
    let source = base.join("in");
    fs::create_dir_all(&source).unwrap();
    write_sharded(&source, 5000);
    let mut all = Vec::new();
    for (threads, shard) in [(1, 1 << 40), (2, 1 << 40), (5, 1 << 40), (2, 500_000)] {
        let out = base.join(format!("out-{threads}-{shard}"));
        compress_checkpoint(&source, &out, &recipe(), &options(threads, shard), &mut |_| {}).unwrap();
        all.push(out);
    }
    assert_eq!(contents(&all[0]), contents(&all[1]));
    assert_eq!(contents(&all[0]), contents(&all[2]));
    assert!(contents(&all[3]).len() > contents(&all[0]).len());
    assert_eq!(tensors(&all[0]), tensors(&all[3]));
    let again = Checkpoint::open(&all[3]).unwrap();
    assert_eq!(again.names().count(), tensors(&all[0]).names().count());
    fs::remove_dir_all(&base).unwrap();
}

#[test]
fn each_tensor_becomes_what_its_compressor_makes_of_it_and_the_others_keep_every_bit() {
    let base = folder("each");
    let (source, out) = (base.join("in"), base.join("out"));
    fs::create_dir_all(&source).unwrap();
    write_sharded(&source, 300);
    let report = compress_checkpoint(&source, &out, &recipe(), &Options::default(), &mut |_| {}).unwrap();
    let (before, after) = (tensors(&source), tensors(&out));
    let weight =
        |name: &str| before.get(name).unwrap().to_floats::<f32>().unwrap().into_dimensionality().unwrap();
    for (layer, scheme) in [
        (0, Scheme::symmetric(8).unwrap().per_channel(0)),
        (1, Scheme::symmetric(4).unwrap().per_group(1, 32).unwrap()),
        (3, Scheme::symmetric(4).unwrap().per_channel(0)),
        (4, Scheme::symmetric(8).unwrap().per_group(1, 16).unwrap()),
    ] {
        for part in 0..2 {
            let w: Array2<f32> = weight(&format!("block{part}.{layer}.weight"));
            let expected = UniformQuantizer::new(scheme).compress(w.view()).unwrap();
            let ours = after.quantized(&format!("block{part}.{layer}")).unwrap();
            assert_eq!(ours.codes(), expected.codes());
            assert_eq!(ours.decompress().unwrap(), expected.decompress().unwrap());
        }
    }
    let pruned: Array2<f32> =
        after.get("block0.2.weight").unwrap().to_floats().unwrap().into_dimensionality().unwrap();
    let zeros = (pruned.len() as f64 * 0.7).round_ties_even() as usize;
    assert_eq!(pruned.iter().filter(|&&w| w == 0.0).count(), zeros);
    for (name, tensor) in before.iter() {
        let touched = ["0.weight", "1.weight", "2.weight", "3.weight", "4.weight"];
        if !touched.iter().any(|end| name.ends_with(&format!(".{end}"))) {
            assert_eq!(after.get(name).unwrap(), tensor, "{name}");
        }
    }
    assert_eq!(report.actions["keep"], before.names().count() - 10);
    let all = report.shards.iter().flat_map(|shard| &shard.tensors);
    let notes: Vec<&str> = all.filter(|t| t.note.is_some()).map(|t| t.tensor.as_str()).collect();
    assert_eq!(notes, ["block0.3.ids", "block0.3.bias", "block1.3.ids", "block1.3.bias"]);
    for tensor in report.shards.iter().flat_map(|shard| &shard.tensors) {
        for output in &tensor.outputs {
            assert_eq!(output.crc32, crc32fast::hash(after.get(&output.name).unwrap().bytes()));
        }
    }
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["hidden_size"], 96);
    assert_eq!(config["quantization_config"]["config_groups"].as_object().unwrap().len(), 4);
    fs::remove_dir_all(&base).unwrap();
}

#[test]
fn a_job_goes_through_json_and_does_the_same_elsewhere() {
    let base = folder("job");
    let (source, out) = (base.join("in"), base.join("out"));
    fs::create_dir_all(&source).unwrap();
    write_sharded(&source, 200);
    compress_checkpoint(&source, &out, &recipe(), &Options::default(), &mut |_| {}).unwrap();
    let after = tensors(&out);
    let checkpoint = Checkpoint::open(&source).unwrap();
    let plan = Plan::new(&checkpoint, &recipe(), 1 << 40).unwrap();
    for job in plan.shards().iter().flat_map(|shard| shard.jobs()) {
        let job: Job = serde_json::from_str(&serde_json::to_string(job).unwrap()).unwrap();
        let (tensors, _) = job.run(&checkpoint, &Pool::single()).unwrap();
        for (name, tensor) in tensors {
            assert_eq!(after.get(&name).unwrap(), tensor.view(), "{name}");
        }
    }
    fs::remove_dir_all(&base).unwrap();
}

#[test]
fn shards_done_apart_and_merged_are_the_whole() {
    let base = folder("merge");
    let source = base.join("in");
    fs::create_dir_all(&source).unwrap();
    write_sharded(&source, 500);
    let checkpoint = Checkpoint::open(&source).unwrap();
    let plan = Plan::new(&checkpoint, &recipe(), 60_000).unwrap();
    let (together, apart) = (base.join("together"), base.join("apart"));
    compress_checkpoint(&source, &together, &recipe(), &options(2, 60_000), &mut |_| {}).unwrap();
    let count = plan.shards().len();
    assert!(count > 4);
    for shard in (0..count).rev() {
        let error = merge(&checkpoint, &plan, &apart).unwrap_err().to_string();
        assert!(error.contains("not finished"), "{error}");
        compress_shard(&checkpoint, &plan, shard, &apart, &Pool::single(), &mut |_| {}).unwrap();
    }
    merge(&checkpoint, &plan, &apart).unwrap();
    assert_eq!(contents(&together), contents(&apart));
    assert!(compress_shard(&checkpoint, &plan, count, &apart, &Pool::single(), &mut |_| {}).is_err());
    fs::remove_dir_all(&base).unwrap();
}

#[test]
fn another_recipe_or_source_does_all_again() {
    let base = folder("again");
    let (source, out) = (base.join("in"), base.join("out"));
    fs::create_dir_all(&source).unwrap();
    write_sharded(&source, 100);
    let run = |recipe: &Recipe| {
        let mut done = 0;
        compress_checkpoint(&source, &out, recipe, &Options::default(), &mut |progress| {
            done += usize::from(matches!(progress, Progress::Shard { found: false, .. }));
        })
        .unwrap();
        done
    };
    assert_eq!((run(&recipe()), run(&recipe())), (2, 0));
    assert_eq!((run(&Recipe::default()), run(&Recipe::default())), (2, 0));
    let path = out.join("model-00002-of-00002.safetensors");
    fs::write(&path, b"cut off").unwrap();
    assert_eq!((run(&Recipe::default()), run(&Recipe::default())), (1, 0));
    fs::remove_dir_all(&base).unwrap();
}

#[test]
fn refuses_the_folder_itself_numbers_that_are_none_and_groups_that_do_not_fit() {
    let base = folder("refuses");
    let (source, out) = (base.join("in"), base.join("out"));
    fs::create_dir_all(&source).unwrap();
    write_sharded(&source, 10);
    let error = |input: &Path, output: &Path, action: Action| {
        let rule = trimnet::io::checkpoint::Rule { pattern: "*.1.weight".into(), action };
        let recipe = Recipe::new(vec![rule]).unwrap();
        let run = compress_checkpoint(input, output, &recipe, &Options::default(), &mut |_| {});
        run.unwrap_err().to_string()
    };
    assert!(error(&source, &source, Action::Keep).contains("itself"));
    let text = error(&source, &out, Action::Int4 { group: Some(7) });
    assert!(text.contains("groups of 7 do not divide the 96 inputs of \"block0.1.weight\""), "{text}");

    let mut w = numbers(9000, 32, 1);
    w[[8123, 4]] = f32::NAN;
    let mut file = SafeTensors::new();
    file.insert("a.1.weight", Tensor::from_floats(w.view(), Dtype::Bf16).unwrap());
    let path = base.join("nan.safetensors");
    file.save(&path).unwrap();
    for action in [Action::Int4 { group: Some(8) }, Action::Prune { sparsity: 0.5 }] {
        let text = error(&path, &out, action);
        assert!(text.contains("a.1.weight") && text.contains("NaN at index [8123, 4]"), "{text}");
    }
    assert!(contents(&out).is_empty());
    assert!(error(&base.join("none"), &out, Action::Keep).contains("none"));
    fs::remove_dir_all(&base).unwrap();
}

#[test]
fn a_folder_used_before_has_the_new_model_and_every_file_of_the_user() {
    let base = folder("reused");
    let out = base.join("out");
    fs::create_dir_all(&out).unwrap();
    let single = base.join("single.safetensors");
    let mut file = SafeTensors::new();
    for layer in 0..4 {
        let tensor = Tensor::from_floats(numbers(50, 96, layer).view(), Dtype::F32).unwrap();
        file.insert(format!("a.{layer}.weight"), tensor);
    }
    file.save(&single).unwrap();
    // Of the user: no name of ours, no report, or no report of ours.
    let theirs = [
        "model-00001-of-00009.safetensors",
        "model-1-of-2.safetensors",
        "model-1-of-2.safetensors.report.json",
        "model-00007-of-00003.safetensors.report.json",
        "model-00001-of-00008.safetensors.report.json",
        "tokenizer.json",
    ];
    theirs.iter().for_each(|name| fs::write(out.join(name), b"{}").unwrap());
    let mut ours = Vec::new();
    for max_shard_bytes in [20_000, 1 << 40, 6_000, 20_000, 1 << 40] {
        compress_checkpoint(&single, &out, &recipe(), &options(1, max_shard_bytes), &mut |_| {}).unwrap();
        let fresh = base.join(format!("fresh-{}", ours.len()));
        compress_checkpoint(&single, &fresh, &recipe(), &options(1, max_shard_bytes), &mut |_| {}).unwrap();
        let (mut all, fresh_files) = (contents(&out), contents(&fresh));
        for name in theirs {
            assert_eq!(all.remove(name).as_deref(), Some(b"{}".as_slice()), "{name}");
        }
        assert_eq!(all, fresh_files);
        let open = |folder: &Path| {
            let checkpoint = Checkpoint::open(folder).unwrap();
            checkpoint.names().map(String::from).collect::<Vec<_>>()
        };
        assert_eq!(open(&out), open(&fresh));
        ours.push(all.len());
    }
    // Shards and their reports, an index where they are several, and what was done.
    assert_eq!(ours, [8, 3, 10, 8, 3]);
    // A model of the user is no shard of ours.
    fs::write(out.join("model.safetensors.report.json"), b"{}").unwrap();
    compress_checkpoint(&single, &out, &recipe(), &options(1, 20_000), &mut |_| {}).unwrap();
    assert!(out.join("model.safetensors").exists());
    fs::remove_dir_all(&base).unwrap();
}

#[test]
fn no_report_stands_beside_a_shard_that_is_about_to_be_replaced() {
    let base = folder("vouch");
    let (source, out) = (base.join("in"), base.join("out"));
    fs::create_dir_all(&source).unwrap();
    write_sharded(&source, 100);
    let of = |sparsity| {
        let action = Action::Prune { sparsity };
        Recipe::new(vec![trimnet::io::checkpoint::Rule { pattern: "*".into(), action }]).unwrap()
    };
    let mut met = 0;
    for sparsity in [0.5, 0.75] {
        compress_checkpoint(&source, &out, &of(sparsity), &Options::default(), &mut |progress| {
            if let Progress::Tensor(tensor) = progress {
                let part = if tensor.tensor.starts_with("block0") { 1 } else { 2 };
                let shard = out.join(format!("model-0000{part}-of-00002.safetensors"));
                assert!(!shard.with_extension("safetensors.report.json").exists());
                met += usize::from(shard.exists());
            }
        })
        .unwrap();
    }
    assert!(met > 0, "the second run replaced nothing");
    fs::remove_dir_all(&base).unwrap();
}

#[test]
fn a_job_that_no_recipe_could_make_is_an_error() {
    let base = folder("jobs");
    let path = base.join("model.safetensors");
    let mut file = SafeTensors::new();
    file.insert("a.weight", Tensor::from_floats(numbers(6, 4, 1).view(), Dtype::F32).unwrap());
    file.insert("b.weight", Tensor::new(Dtype::F4, vec![2, 4], vec![0; 4]).unwrap());
    file.insert("c.weight", Tensor::new(Dtype::F32, vec![0, 1 << 40], vec![]).unwrap());
    file.save(&path).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let run = |tensor: &str, action: &str| {
        let json = format!(r#"{{"tensor":"{tensor}","action":{action},"note":null}}"#);
        let job: Job = serde_json::from_str(&json).map_err(|error| error.to_string())?;
        job.run(&checkpoint, &Pool::single()).map_err(|error| error.to_string())
    };
    for (tensor, action, reason) in [
        ("a.weight", r#"{"int8":{"group":0}}"#, "group is 0, allowed is 1 or more"),
        ("a.weight", r#"{"prune":{"sparsity":2.5}}"#, "sparsity is 2.5, allowed is 0 <= sparsity <= 1"),
        ("a.weight", r#"{"int4":{"group":3}}"#, "groups of 3 do not divide the 4 inputs"),
        (
            "a.weight",
            r#"{"int8":{"packing":"packed"}}"#,
            "\"a.weight\": 8 bits of 4 inputs packed look like 4",
        ),
        ("b.weight", r#"{"prune":{"sparsity":0.5}}"#, "\"b.weight\": F4 holds no real numbers"),
        ("c.weight", r#"{"int4":{}}"#, "is not a matrix"),
        ("d.weight", r#""keep""#, "no tensor \"d.weight\""),
    ] {
        let error = run(tensor, action).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
    assert!(run("a.weight", r#"{"int8":{"group":2}}"#).is_ok() && run("b.weight", r#""keep""#).is_ok());
    for action in [Action::Prune { sparsity: f64::NAN }, Action::Int4 { group: Some(0) }] {
        assert!(Job::new(&checkpoint, "a.weight", action).is_err(), "{action:?}");
    }
    // In a recipe, few inputs are no reason to stop.
    let packed = r#"{"rules": [{"match": "a.*", "do": {"int8": {"packing": "packed"}}}]}"#;
    let job =
        Job::new(&checkpoint, "a.weight", Recipe::from_json(packed).unwrap().action("a.weight")).unwrap();
    assert_eq!(job.action(), Action::Keep);
    fs::remove_dir_all(&base).unwrap();
}

#[test]
fn an_index_that_lies_is_refused() {
    let base = folder("index");
    let index = base.join("model.safetensors.index.json");
    let good = {
        write_sharded(&base, 5);
        fs::read_to_string(&index).unwrap()
    };
    for (from, to, wanted) in [
        ("\"model-1.safetensors\"", "\"../model-1.safetensors\"", "not the name of a file"),
        ("\"model-1.safetensors\"", "\"/etc/passwd\"", "not the name of a file"),
        ("\"model-1.safetensors\"", "\"missing.safetensors\"", "missing.safetensors"),
        ("\"block1.0.weight\":\"model-1.", "\"block1.0.weight\":\"model-0.", "does not say so"),
        ("\"block1.0.weight\"", "\"block1.9.weight\"", "does not say so"),
        ("weight_map", "weights", "not an index"),
    ] {
        assert!(good.contains(from));
        fs::write(&index, good.replace(from, to)).unwrap();
        let text = Checkpoint::open(&base).unwrap_err().to_string();
        assert!(text.contains(wanted), "{to}: {text}");
    }
    fs::write(&index, good.replacen('{', r#"{"x": 1,"#, 1)).unwrap();
    assert!(Checkpoint::open(&base).is_ok());
    fs::remove_dir_all(&base).unwrap();
}

/// What the tests below run in a process of its own: it works on the folders that its environment names.
#[test]
#[ignore = "a part of other tests"]
fn child() {
    let (Ok(source), Ok(out)) = (std::env::var("TRIMNET_IN"), std::env::var("TRIMNET_OUT")) else { return };
    let max = std::env::var("TRIMNET_SHARD").unwrap().parse().unwrap();
    compress_checkpoint(source, out, &recipe(), &options(2, max), &mut |_| {}).unwrap();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    eprintln!("{}", status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("no VmHWM"));
}

fn spawn_child(source: &Path, out: &Path, max_shard_bytes: u64) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "checkpoint::child", "--ignored", "--nocapture", "--test-threads=1"])
        .env("TRIMNET_IN", source)
        .env("TRIMNET_OUT", out)
        .env("TRIMNET_SHARD", max_shard_bytes.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn a_killed_run_goes_on_where_it_stopped_and_ends_with_the_same_bytes() {
    let base = folder("kill");
    let (source, out, whole) = (base.join("in"), base.join("out"), base.join("whole"));
    fs::create_dir_all(&source).unwrap();
    write_sharded(&source, 8000);
    let max = 1_000_000;
    compress_checkpoint(&source, &whole, &recipe(), &options(2, max), &mut |_| {}).unwrap();
    let reports = |folder: &Path| {
        let names =
            fs::read_dir(folder).map(|dir| dir.filter_map(|e| e.ok()?.file_name().into_string().ok()));
        names.map_or(0, |names| names.filter(|name| name.ends_with(".report.json")).count())
    };
    let wanted = reports(&whole);
    let mut kills = 0;
    let mut kept = 0;
    // Each run may finish a few shards more than the one before, and dies right after.
    for goal in (1..wanted).step_by(3) {
        let mut child = spawn_child(&source, &out, max);
        while reports(&out) < goal && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        kills += usize::from(child.try_wait().unwrap().is_none());
        let _ = child.kill();
        child.wait().unwrap();
        assert!(reports(&out) >= kept, "a finished shard is gone");
        kept = reports(&out);
        // Under a final name there is no half file, whenever the kill came.
        for (name, bytes) in contents(&out) {
            if !name.ends_with(".tmp") {
                assert_eq!(Some(&bytes), contents(&whole).get(&name), "{name}");
            }
        }
    }
    assert!(kills > 0, "every run was faster than its kill");
    let (mut found, mut done) = (0, 0);
    compress_checkpoint(&source, &out, &recipe(), &options(3, max), &mut |progress| match progress {
        Progress::Shard { found: true, .. } => found += 1,
        Progress::Shard { .. } => done += 1,
        Progress::Tensor(_) => {}
    })
    .unwrap();
    assert_eq!((found, found + done), (kept, wanted));
    assert_eq!(contents(&out), contents(&whole), "temporary files are gone too");
    fs::remove_dir_all(&base).unwrap();
}

#[test]
#[cfg(target_os = "linux")]
fn memory_stays_below_three_of_the_largest_tensor_and_100_mb() {
    let base = folder("memory");
    let (source, out) = (base.join("model.safetensors"), base.join("out"));
    // 12 tensors of 32 MB: 384 MB, where 196 are allowed.
    let mut file = SafeTensors::new();
    for layer in 0..12 {
        let bytes = numbers(1024, 1024, layer).iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let tensor = Tensor::new(Dtype::F32, vec![8192, 1024], bytes.repeat(8)).unwrap();
        file.insert(format!("a{layer}.{}.weight", layer % 6), tensor);
    }
    file.save(&source).unwrap();
    drop(file);
    let output = spawn_child(&source, &out, 1 << 40).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let line = text.lines().find(|line| line.contains("VmHWM")).unwrap();
    let kilobytes: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kilobytes * 1024 < 3 * (32 << 20) + 100_000_000, "{line}");
    fs::remove_dir_all(&base).unwrap();
}
