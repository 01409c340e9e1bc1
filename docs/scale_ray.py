"""Compresses a checkpoint with Ray: scale_ray.py BINARY MODEL OUT RECIPE [MAX_SHARD_BYTES]"""
import json, subprocess, sys
import ray

binary, model, out, recipe, *limit = sys.argv[1:]
command = [binary, model, out, "--recipe", recipe] + (["--max-shard", limit[0]] if limit else [])

def run(*step):
    done = subprocess.run([*command, *step], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout

@ray.remote(num_cpus=1, max_retries=3)
def shard(k):
    return k, ray.get_runtime_context().get_worker_id()[:6], json.loads(run("--shard", str(k), "--threads", "1", "--json"))

plan = json.loads(run("--plan"))
ray.init()
waiting = [shard.remote(k) for k in range(len(plan["shards"]))]
while waiting:
    ready, waiting = ray.wait(waiting)
    for k, worker, report in ray.get(ready):
        before = sum(tensor["bytes_before"] for tensor in report["tensors"])
        after = sum(tensor["bytes_after"] for tensor in report["tensors"])
        print(f"shard {k} on worker {worker}: {len(report['tensors'])} tensors, {before} -> {after} bytes")
total = json.loads(run("--merge", "--json"))
print(f"merged: {total['bytes_before']} -> {total['bytes_after']} bytes, {total['actions']}")
