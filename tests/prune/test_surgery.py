import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from edgeprune import skeleton
from edgeprune.attention import SlimAttention
from edgeprune.errors import PlanError
from edgeprune.plan import Cut, PruningPlan
from edgeprune.prune import graph, surgery

IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def cut(module: nn.Module, plan: Any, couplings: Any) -> Any:
    slim = copy.deepcopy(module)
    surgery.apply(slim, plan, couplings)
    return slim


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "regnet_x_400mf", "shufflenet_v2_x0_5"])
def test_masked_equals_cut(
    name: str, lively: Callable[..., Any], plan_of: Callable[..., Any], silence: Callable[..., Any]
) -> None:
    module = torchvision.models.get_model(name)
    couplings = graph.find(module, IMAGE, verify=False)
    module = lively(module)
    plan = plan_of(couplings)
    slim, masked = cut(module, plan, couplings), silence(module, plan, couplings)
    with torch.no_grad():
        want, got = masked(IMAGE.double()), slim(IMAGE.double())
    assert float((want - got).abs().max()) < 1e-9 * float(want.abs().max())
    assert sum(p.numel() for p in slim.parameters()) < 0.75 * sum(p.numel() for p in module.parameters())


def test_an_empty_plan_changes_nothing() -> None:
    module = torchvision.models.resnet18()
    before = skeleton.attributes(module)
    parameters = list(module.parameters())
    surgery.apply(module, PruningPlan(), graph.find(module, IMAGE, verify=False))
    assert skeleton.attributes(module) == before
    assert all(a is b for a, b in zip(parameters, module.parameters(), strict=True))


def test_the_same_plan_on_equal_networks_gives_equal_networks(plan_of: Callable[..., Any]) -> None:
    module = torchvision.models.resnet18()
    couplings = graph.find(module, IMAGE, verify=False)
    plan = PruningPlan.from_json(json.loads(plan_of(couplings).dumps()))
    one, two = cut(module, plan, couplings), cut(module, plan, graph.find(module, IMAGE, verify=False))
    assert skeleton.diff(one, two) == {}
    assert all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    )


def test_dtype_gradients_and_ties_stay(plan_of: Callable[..., Any]) -> None:
    module = torchvision.models.resnet18().to(torch.bfloat16)
    module.layer1.requires_grad_(False)
    module.layer1[0].bn1.weight = module.layer1[0].bn1.bias
    couplings = graph.find(module, IMAGE, verify=False)
    surgery.apply(module, plan_of(couplings), couplings)
    assert module.layer1[0].conv1.weight.dtype == torch.bfloat16
    assert not module.layer1[0].conv1.weight.requires_grad
    assert module.layer2[0].conv1.weight.requires_grad
    assert module.layer1[0].bn1.weight is module.layer1[0].bn1.bias


def test_attributes_are_in_step_and_a_skeleton_takes_the_cut_weights(plan_of: Callable[..., Any]) -> None:
    build = lambda: timm.create_model("vit_tiny_patch16_224", depth=2, img_size=64).eval()  # noqa: E731
    module = build()  # type: ignore[no-untyped-call]
    couplings = graph.find(module, IMAGE)
    slim = cut(module, plan_of(couplings), couplings)
    assert slim.blocks[0].attn.num_heads == 2
    assert slim.blocks[0].mlp.fc1.out_features == 384
    again = build()  # type: ignore[no-untyped-call]
    attributes = json.loads(json.dumps(skeleton.diff(module, slim)))
    skeleton.impose(again, attributes, {k: tuple(v.shape) for k, v in slim.state_dict().items()})
    again.load_state_dict(slim.state_dict(), strict=True)
    assert torch.equal(again(IMAGE), slim(IMAGE))
    assert skeleton.diff(slim, again) == {}


def test_multi_head_attention_of_torch_loses_heads_apart_from_its_stream(plan_of: Callable[..., Any]) -> None:
    def build() -> Any:
        return torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=5).eval()

    module, image = build(), torch.randn(2, 3, 32, 32)
    nn.init.normal_(module.heads.head.weight)
    couplings = graph.find(module, image)
    heads = couplings["encoder.layers.encoder_layer_0.self_attention.in_proj_weight"]
    assert (heads.unit, heads.frozen) == (8, None)
    slim = cut(module, plan_of(couplings), couplings)
    attention = slim.encoder.layers[0].self_attention
    assert isinstance(attention, SlimAttention)
    assert (attention.num_heads, attention.embed_dim) == (2, 16)
    again = build()
    attributes = json.loads(json.dumps(skeleton.diff(module, slim)))
    skeleton.impose(again, attributes, {k: tuple(v.shape) for k, v in slim.state_dict().items()})
    again.load_state_dict(slim.state_dict(), strict=True)
    assert torch.equal(again(image), slim(image))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("weights", [True, False])
def test_slim_attention_equals_the_one_of_torch(batch_first: bool, weights: bool) -> None:
    from edgeprune.attention import open_up

    dense = nn.MultiheadAttention(16, 4, batch_first=batch_first).eval()
    slim = copy.deepcopy(dense)
    assert open_up(slim)
    q, kv = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    if not batch_first:
        q, kv = q.transpose(0, 1), kv.transpose(0, 1)
    padding = torch.tensor([[False] * 7, [False] * 5 + [True] * 2])
    mask = torch.randn(5, 7)
    options = {"key_padding_mask": padding.float() * -1e4, "attn_mask": mask, "need_weights": weights}
    for got, want in zip(slim(q, kv, kv, **options), dense(q, kv, kv, **options), strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_helpful_errors() -> None:
    module = torchvision.models.resnet18()
    couplings = graph.find(module, IMAGE, verify=False)
    before = copy.deepcopy(module.state_dict())
    for plan, text in (
        (Cut("layer9.0.conv1", 64, (0,)), r"layer9.0.conv1: the plan cuts it, .*; did you mean 'layer"),
        (Cut("layer1.0.conv1", 48, (0,)), r"layer1.0.conv1: 48 channels in the plan, 64 in the network"),
        (Cut("fc", 1000, (0,)), r"fc: the plan cuts it, but it must stay whole: the network's output"),
    ):
        with pytest.raises(PlanError, match=text):
            surgery.apply(module, PruningPlan((plan,)), couplings)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    grouped = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, groups=8), nn.Conv2d(16, 4, 1))
    with pytest.raises(PlanError, match="channels go in whole runs of 2; the plan keeps part of a run"):
        surgery.apply(grouped, PruningPlan((Cut("0", 16, (0, 1, 2)),)), graph.find(grouped, IMAGE))
    narrow = torchvision.models.resnet18()
    narrow.layer1[0].conv1 = nn.Conv2d(64, 32, 3)
    with pytest.raises(PlanError, match="64 expected along axis 0, 32 found; is it another architecture"):
        surgery.apply(narrow, PruningPlan((Cut("layer1.0.conv1", 64, (0,)),)), couplings)


def test_a_cut_network_trains(plan_of: Callable[..., Any]) -> None:
    module = torchvision.models.googlenet(init_weights=False, aux_logits=True)
    couplings = graph.find(module, torch.randn(2, 3, 224, 224), verify=False)
    surgery.apply(module, plan_of(couplings), couplings)
    module.train()
    out = module(torch.randn(2, 3, 224, 224))
    sum(o.sum() for o in out).backward()
    assert all(p.grad is not None for p in module.parameters())
