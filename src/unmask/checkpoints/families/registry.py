"""Which family a config.json belongs to."""

from __future__ import annotations

from typing import Any

from unmask.checkpoints.families import behind_text, diffugpt, diffusion_gemma, dit, gemma, llada, llama, mamba2
from unmask.checkpoints.families.family import Family
from unmask.errors import UnmaskError

FAMILIES = [
    llada.LLADA,
    llama.ILLADA,
    llama.LLADA_MOE,
    llada.LLADA2,
    llama.DREAM,
    llama.OPEN_DCODER,
    llama.SDAR,
    llama.A2D,
    llama.FAST_DLLM_V2,
    llama.STABLE_DIFFCODER,
    behind_text.NEMOTRON,
    behind_text.SDLM,
    behind_text.WEDLM,
    behind_text.I_DLM,
    llama.RND1,
    llama.DREAM_REASONER,
    dit.SEDD,
    diffusion_gemma.FAMILY,
    diffugpt.FAMILY,
    llama.DIFFULLAMA,
    llama.LLAMA,
    llama.QWEN3,
    llama.MISTRAL,
    *gemma.FAMILIES,
    mamba2.FAMILY,
    *dit.FAMILIES,
]
# architectures that are known and not read, and why
UNREADABLE = {
    "ModernBertForMaskedLM": "the network has no local attention with rotations of its own, no norm of the embeddings, "
    "no gated GELU and no prediction head, all of which ModernBERT has",
    "NemotronLabsDiffusionVLMModel": "it reads images; the text models of the family are read",
    "Gemma2ForCausalLM": "its attention scores are capped, which ours are not; Gemma and Gemma 3 are read",
    "Gemma3ForConditionalGeneration": "it reads images; the text models of the family (Gemma3ForCausalLM) are read",
}
BY_TYPE = {
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration",
    "modernbert": "ModernBertForMaskedLM",
    "nemotron_labs_diffusion_vlm": "NemotronLabsDiffusionVLMModel",
}


def recognise(raw: dict[str, Any], source: str, hint: str = "") -> Family | None:
    """The family of a config, None for our own layout; an unknown one raises UnmaskError.

    hint: the folder's name, for the families whose config.json is that of another. Looked at are, in this order,
    the keys that a family recognises, `architectures`, and `model_type`.
    """
    kind = raw.get("model_type")
    listed = raw.get("architectures") or []
    if kind == "unmask":
        return None
    architectures = {str(a) for a in listed} if isinstance(listed, list) else set()
    hint = f"{hint} {raw.get('_name_or_path', '')}".lower()
    by_keys = [f for f in FAMILIES if f.recognises(raw, hint)]
    by_architecture = [f for f in FAMILIES if architectures & set(f.architectures)]
    by_type = [f for f in FAMILIES if kind in f.model_types]
    found = by_keys or by_architecture or by_type
    if found:
        return found[0]
    for name in (*sorted(architectures), BY_TYPE.get(str(kind), "")):
        if name in UNREADABLE:
            raise UnmaskError(f"{source}: {name} is known but not read: {UNREADABLE[name]}")
    looked = f"model_type {kind!r:.60}, architectures {sorted(architectures)!r:.120}, keys {sorted(raw)[:6]!r:.120}"
    raise UnmaskError(f"{source}: no known family by {looked}; docs/families.md lists what is read")
