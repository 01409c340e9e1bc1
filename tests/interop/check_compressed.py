"""compressed-tensors and transformers load what trimnet compressed. Usage: check_compressed.py COMPRESS_CHECKPOINT

A small random Llama, compressed by several recipes; its logits have to equal those of the same model with the weights that
the integers stand for, computed here with numpy from the files.
"""
import json, pathlib, subprocess, sys, tempfile
import numpy as np, torch, transformers
from safetensors.torch import load_file

COMPRESS = sys.argv[1]
LINEAR = "*_proj.weight"

def unpack(words, bits, columns):
    words = words.numpy().view(np.uint32)
    codes = (words[:, :, None] >> (np.arange(32 // bits, dtype=np.uint32) * bits)) & (2 ** bits - 1)
    return codes.reshape(words.shape[0], -1)[:, :columns].astype(np.int64) - 2 ** (bits - 1)

def dequantized(tensors):
    """The plain state dict that the integers stand for, and how many weights were integers."""
    plain, count = {}, 0
    for name, tensor in tensors.items():
        module = name.rsplit(".", 1)[0]
        if name.endswith((".weight_scale", ".weight_shape")):
            continue
        if name.endswith(".weight_packed"):
            rows, columns = tensors[module + ".weight_shape"].tolist()
            codes = unpack(tensor, 32 * tensor.shape[1] // columns, columns)
        elif module + ".weight_scale" in tensors and name.endswith(".weight"):
            codes = tensor.numpy().astype(np.int64)
        else:
            plain[name] = tensor
            continue
        scales = tensors[module + ".weight_scale"].numpy()
        scales = np.repeat(scales, codes.shape[1] // scales.shape[1], axis=1)
        plain[module + ".weight"] = torch.from_numpy(codes.astype(np.float32) * scales)
        count += 1
    return plain, count

RECIPES = {
    "int8": [{"match": LINEAR, "do": {"int8": {}}}],
    "int8 packed": [{"match": LINEAR, "do": {"int8": {"packing": "packed"}}}],
    "int8 groups": [{"match": LINEAR, "do": {"int8": {"group": 32, "packing": "packed"}}}],
    "int4": [{"match": LINEAR, "do": {"int4": {}}}],
    "int4 groups of 32": [{"match": "*.layers.0.mlp.down_proj.weight", "do": "keep"}, {"match": LINEAR, "do": {"int4": {"group": 32}}}],
    "pruned": [{"match": LINEAR, "do": {"prune": {"sparsity": 0.5}}}],
    "int8 attention, int4 mlp": [
        {"match": "*.self_attn.*", "do": {"int8": {}}},
        {"match": "*.mlp.*", "do": {"int4": {"group": 32}}}],
}

with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    for seed, (what, rules) in enumerate(RECIPES.items()):
        torch.manual_seed(seed)
        config = transformers.LlamaConfig(
            hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=96, max_position_embeddings=64, tie_word_embeddings=False)
        model = transformers.LlamaForCausalLM(config).float().eval()
        source, out, recipe = folder / f"{seed}", folder / f"{seed}.out", folder / f"{seed}.json"
        model.save_pretrained(source, max_shard_size="200KB" if seed % 2 else "1GB")
        recipe.write_text(json.dumps({"rules": rules}))
        command = [COMPRESS, source, out, "--recipe", recipe, "--json"] + (["--max-shard", "1e5"] if seed % 3 == 1 else [])
        report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        tensors = {}
        for shard in out.glob("*.safetensors"):
            tensors.update(load_file(shard))
        plain, count = dequantized(tensors)
        model.load_state_dict(plain, strict=True)
        ids = torch.randint(0, 96, (2, 20))
        with torch.no_grad():
            expected = model(ids).logits
            loaded = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
            logits = loaded(ids).logits
        difference = (logits - expected).abs().max().item()
        assert difference == 0.0, (what, difference)
        assert sum(report["actions"].values()) == len(model.state_dict())
        ratio = report["bytes_before"] / report["bytes_after"]
        print(f"{what}: {count} integer weights, {len(report['shards'])} shards, {ratio:.2f} times smaller, logits equal")
