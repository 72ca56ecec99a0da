"""The peer: Muffin in PyTorch, Hugging Face's LLaMA with SDPA and a BEiT-3 of standard layers, and its DDPO steps.

Module names are those of the conversion table, so that our weights load as they are.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

from rlhfv_jax import trees
from rlhfv_jax.conversion import table
from rlhfv_jax.models.vlm import MuffinConfig
from rlhfv_jax.structs import IGNORE, PairBatch


class Branches(nn.ModuleDict):
    """A module for the image stream (A) and one for the queries (B)."""

    def __init__(self, make: Any):
        super().__init__({"A": make(), "B": make()})

    def forward(self, x: torch.Tensor, split: int) -> torch.Tensor:
        return torch.cat([self["A"](x[:, :split]), self["B"](x[:, split:])], dim=1)


class SelfAttention(nn.Module):
    def __init__(self, c: Any):
        super().__init__()
        self.heads = c.heads
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, Branches(lambda: nn.Linear(c.width, c.width)))
        self.inner_attn_ln = Branches(lambda: nn.LayerNorm(c.width, c.norm_eps))

    def forward(self, x: torch.Tensor, split: int) -> torch.Tensor:
        b, t, d = x.shape
        q, k, v = (
            p(x, split).view(b, t, self.heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d)
        return self.out_proj(self.inner_attn_ln(y, split), split)


class FeedForward(nn.Module):
    def __init__(self, c: Any):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(c.width, c.ffn), nn.Linear(c.ffn, c.width)
        self.ffn_layernorm = nn.LayerNorm(c.ffn, c.norm_eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.ffn_layernorm(F.gelu(self.fc1(x))))


class EncoderLayer(nn.Module):
    def __init__(self, c: Any):
        super().__init__()
        self.self_attn, self.ffn = SelfAttention(c), Branches(lambda: FeedForward(c))
        self.self_attn_layer_norm = Branches(lambda: nn.LayerNorm(c.width, c.norm_eps))
        self.final_layer_norm = Branches(lambda: nn.LayerNorm(c.width, c.norm_eps))

    def forward(self, x: torch.Tensor, split: int) -> torch.Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x, split), split)
        return x + self.ffn(self.final_layer_norm(x, split), split)


class Tower(nn.Module):
    def __init__(self, c: Any):
        super().__init__()
        self.config = c
        self.vision_embed = nn.Module()
        self.vision_embed.cls_token = nn.Parameter(torch.zeros(1, 1, c.width))
        self.vision_embed.proj = nn.Conv2d(3, c.width, c.patch, c.patch)
        self.encoder = nn.Module()
        self.encoder.embed_positions = nn.ModuleDict(
            {"A": nn.Embedding(c.patches + 3, c.width), "B": nn.Embedding(c.query_positions, c.width)}
        )
        self.encoder.layers = nn.ModuleList([EncoderLayer(c) for _ in range(c.layers)])
        self.encoder.layer_norm = Branches(lambda: nn.LayerNorm(c.width, c.norm_eps))

    def forward(self, image: torch.Tensor, query: torch.Tensor, recompute: bool) -> torch.Tensor:
        b, split = image.shape[0], self.config.patches + 1
        patches = self.vision_embed.proj(image).flatten(2).transpose(1, 2)
        a = torch.cat([self.vision_embed.cls_token.expand(b, -1, -1), patches], 1)
        positions = self.encoder.embed_positions
        a = a + positions["A"].weight[2 : 2 + split]
        q = (query + positions["B"].weight[2 : 2 + len(query)]).expand(b, -1, -1)
        x = torch.cat([a, q], 1)
        for layer in self.encoder.layers:
            x = checkpoint(layer, x, split, use_reentrant=False) if recompute else layer(x, split)
        return self.encoder.layer_norm["B"](x[:, split:])


class TorchMuffin(nn.Module):
    def __init__(self, c: MuffinConfig, recompute: bool):
        super().__init__()
        llm = c.llm
        self.config, self.recompute = c, recompute
        self.lm = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=llm.vocab_size,
                hidden_size=llm.width,
                intermediate_size=llm.ffn,
                num_hidden_layers=llm.layers,
                num_attention_heads=llm.heads,
                num_key_value_heads=llm.kv_heads,
                rms_norm_eps=llm.norm_eps,
                rope_theta=llm.rope_theta,
                attn_implementation="sdpa",
                use_cache=False,
                tie_word_embeddings=False,
            )
        )
        if recompute:
            self.lm.gradient_checkpointing_enable({"use_reentrant": False})
            self.lm.train()
        self.tower, self.query = Tower(c.tower), nn.Parameter(torch.zeros(c.tower.queries, c.tower.width))
        self.projector = nn.Linear(c.tower.width, llm.width)

    def load(self, params: Any) -> None:
        """Our parameters by the conversion table; every tensor must be set."""
        c = self.config
        sizes = {"vocab": c.llm.vocab_size, "width": c.llm.width, "ffn": c.llm.ffn, "layers": c.llm.layers}
        sizes |= {"heads": c.llm.heads, "kv_heads": c.llm.kv_heads, "head": c.llm.head_size}
        sizes |= {f"tower_{name}": getattr(c.tower, name) for name in ("width", "ffn", "layers", "heads")}
        sizes |= {"tower_head": c.tower.width // c.tower.heads, "queries": c.tower.queries, "color": 3}
        sizes |= {"image_positions": c.tower.patches + 3, "query_positions": c.tower.query_positions}
        sizes |= {"patch_x": c.tower.patch, "patch_y": c.tower.patch}
        ours, state = dict(trees.paths(params)), {}
        for entry in table.MUFFIN:
            array = np.asarray(ours[entry.path])
            for name, values in zip(entry.names(sizes), array if entry.stack else [array], strict=True):
                state[_renamed(name)] = torch.tensor(np.ascontiguousarray(entry.to_torch(values, sizes)))
        self.load_state_dict(state, strict=True)

    def forward(self, image: torch.Tensor, tokens: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Hidden states of rows; as many images as rows, or half as many where a pair's two share one."""
        features = self.projector(self.tower(image, self.query, self.recompute))
        features = features.repeat_interleave(len(tokens) // len(image), 0)
        embeds = self.lm.model.embed_tokens(tokens)
        slots = (tokens == self.config.image_token)[..., None]
        embeds = embeds.masked_scatter(slots, features.to(embeds.dtype))
        return self.lm.model(inputs_embeds=embeds, attention_mask=attended).last_hidden_state


def _renamed(name: str) -> str:
    for ours, theirs in (
        ("model.vision_tower.beit3.", "tower."),
        ("model.mm_projector.", "projector."),
        ("model.query", "query"),
    ):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return f"lm.{name}"


def arrays(batch: PairBatch, device: str) -> dict[str, torch.Tensor]:
    length = batch.tokens.shape[2]
    values = {name: torch.tensor(getattr(batch, name)) for name in ("tokens", "labels", "weights", "ref_logps")}
    values["image"] = torch.tensor(batch.image).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    values["attended"] = torch.arange(length)[None] < torch.tensor(batch.lengths).reshape(-1)[:, None]
    values = {name: value.to(device) for name, value in values.items()}
    return values | {"tokens": values["tokens"].reshape(-1, length).long(), "labels": values["labels"].long()}


def ddpo(logps: torch.Tensor, b: dict[str, torch.Tensor], beta: float) -> torch.Tensor:
    logps = logps.view(b["weights"].shape)
    score = ((logps - b["ref_logps"]) * b["weights"]).sum(-1) / b["weights"].sum(-1)
    return -F.logsigmoid(beta * (score[:, 0] - score[:, 1])).mean()


def official_loss(model: TorchMuffin, b: dict[str, torch.Tensor], beta: float) -> torch.Tensor:
    """As usual: every row with its own image, logits of all positions, a whole log-softmax."""
    hidden = model(b["image"].repeat_interleave(2, 0), b["tokens"], b["attended"])
    log_probs = model.lm.lm_head(hidden[:, :-1]).float().log_softmax(-1)
    labels = b["labels"].view(len(b["tokens"]), -1)
    found = log_probs.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return ddpo(torch.where(labels == IGNORE, 0.0, found), b, beta)


def tuned_loss(model: TorchMuffin, b: dict[str, torch.Tensor], beta: float) -> torch.Tensor:
    """One encoding a pair, logits of the targets alone, cross entropy."""
    hidden = model(b["image"], b["tokens"], b["attended"])[:, :-1]
    labels = b["labels"].view(len(b["tokens"]), -1)
    scored = labels != IGNORE
    found = -F.cross_entropy(model.lm.lm_head(hidden[scored]).float(), labels[scored], reduction="none")
    return ddpo(torch.zeros(labels.shape, device=found.device).masked_scatter(scored, found), b, beta)
