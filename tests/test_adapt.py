"""Models of other projects as networks: the same logits, and blocks that are truly skipped."""

import copy
import io
from functools import lru_cache

import pytest
import torch
from other_models import CLASSES, FAMILIES, SIZE, TORCHVISION, VIT, made
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from skipnet_rl import adapt
from skipnet_rl.adapters import TABLE, identity, qualified, register
from skipnet_rl.flops import on_meta
from skipnet_rl.folding import fold_batchnorm, for_inference
from skipnet_rl.gates import FeedForwardGateI, RecurrentGate
from skipnet_rl.layouts import ChannelsLast, Tokens
from skipnet_rl.mdp import RoutingMDP
from skipnet_rl.policies import AlwaysExecute, StochasticDepth
from skipnet_rl.rollout import rollout


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    """Each in turn; all tests of one run in a row, so that `adapted` makes it once."""
    return request.param


def images(count: int, seed: int = 1, size: int = SIZE) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def labels(count: int) -> torch.Tensor:
    return torch.arange(count) % CLASSES


@lru_cache(maxsize=1)
def kept(family: str):
    model = made(FAMILIES[family])
    return copy.deepcopy(model), adapt(model, SIZE)


def adapted(family: str):
    return copy.deepcopy(kept(family)[1])


def routes_of(mdp: RoutingMDP, count: int, seed: int = 2) -> torch.Tensor:
    return torch.rand(count, mdp.num_decisions, generator=torch.Generator().manual_seed(seed)) < 0.5


@torch.no_grad()
def test_with_every_block_executed_it_is_the_model_to_the_bit(family):
    model, net = kept(family)
    batch = images(3)
    expected = model(batch)
    played = rollout(RoutingMDP(net), AlwaysExecute(), batch, labels(3))
    assert torch.equal(net(batch), expected)
    assert torch.equal(played.logits, expected)
    assert torch.equal(copy.deepcopy(net)(batch), expected)
    assert expected.std(dim=0).min() > 0  # the images differ for it


def test_a_skipped_block_changes_the_answer_and_gets_no_gradient(family):
    net = adapted(family)
    mdp, batch = RoutingMDP(net), images(2)
    routes = torch.ones(2, mdp.num_decisions, dtype=torch.bool)
    routes[:, mdp.num_decisions // 2] = False
    played = rollout(mdp, AlwaysExecute(), batch, labels(2), routes=routes)
    played.loss.sum().backward()
    skipped = mdp.block(mdp.num_decisions // 2)
    bypass = set(skipped.bypass.parameters()) if skipped.bypass else set()
    assert all(each.grad is None for each in skipped.model.parameters() if each not in bypass)
    others = [mdp.block(t) for t in range(mdp.num_decisions) if t != mdp.num_decisions // 2]
    assert all(any(each.grad is not None for each in block.model.parameters()) for block in others)
    assert not torch.allclose(played.logits, net(batch), atol=1e-4)


@torch.no_grad()
def test_gathering_and_scattering_is_the_dense_mix(family):
    mdp, batch = RoutingMDP(adapted(family).double()), images(4)
    routes = routes_of(mdp, 4)
    for inplace in (False, True):
        state = dense = mdp.initial(batch, labels(4))
        for t in range(mdp.num_decisions):
            dense = mdp.transition(dense, routes[:, t].float())
            state = mdp.transition(state, routes[:, t], inplace=inplace)
            torch.testing.assert_close(state.x, dense.x, rtol=1e-6, atol=1e-8)
            assert mdp.observation(state).shape == (4, mdp.observation_size)


def test_macs_are_those_of_the_flop_counter(family):
    net = adapted(family)
    with FlopCounterMode(display=False) as counter:  # on a CPU it does not count fused attention
        on_meta(net.model)(torch.empty(1, 3, SIZE, SIZE, device="meta"))
    macs = RoutingMDP(net).macs
    assert macs.total == pytest.approx(counter.get_total_flops() / 2, rel=0.01)
    assert min(macs.transforms) > 0 and macs.fixed > 0


@torch.no_grad()
def test_an_image_alone_is_answered_as_in_a_batch(family):
    mdp, batch = RoutingMDP(adapted(family).double()), images(8)
    routes = routes_of(mdp, 8)
    together = rollout(mdp, AlwaysExecute(), batch, labels(8), routes=routes).logits
    for number in range(8):
        one = slice(number, number + 1)
        alone = rollout(mdp, AlwaysExecute(), batch[one], labels(8)[one], routes=routes[one]).logits
        torch.testing.assert_close(alone, together[one], rtol=1e-6, atol=1e-8)


@torch.no_grad()
def test_a_copy_for_inference_answers_alike_without_its_batch_norms(family):
    net = adapted(family).double()
    copied = for_inference(net)
    norms = [each for each in copied.modules() if type(each) is nn.BatchNorm2d]  # timm's own have activations
    before = [each for each in net.modules() if type(each) is nn.BatchNorm2d]
    assert len(norms) <= (5 if family == "MaxViT" else 0)  # there, some come before the convolution
    assert len(before) - len(norms) == len(net.pairs)
    torch.testing.assert_close(copied(images(2)), net(images(2)), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("family", ["ResNet", "ConvNeXt", "ViT", "Swin"])
@torch.no_grad()
def test_a_copy_in_bf16_answers_roughly_alike(family):
    net = adapted(family)
    copied = for_inference(net, "bf16")
    answer, exact = copied(images(8)), net(images(8))
    assert answer.dtype == torch.float32 and copied.dtype == torch.float32
    assert copied.blocks[0].model.state_dict().popitem()[1].dtype in (torch.bfloat16, torch.int64)
    assert F.cosine_similarity(answer - answer.mean(0), exact - exact.mean(0)).min() > 0.8


@pytest.mark.parametrize("family", ["ConvNeXt", "ViT", "Swin", "MaxViT", "EfficientNet"])
def test_stochastic_depth_of_the_model_is_off_and_that_of_a_policy_works(family):
    net = adapted(family).train()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    batch = images(4)
    assert torch.equal(net(batch), net(batch))
    policy = StochasticDepth(0.5, torch.Generator().manual_seed(0))
    played = rollout(RoutingMDP(net), policy, batch, labels(4))
    played.loss.mean().backward()
    assert 0 < played.actions.mean() < 1
    assert sum(each.grad is not None and bool(each.grad.any()) for each in net.parameters()) > 10


def test_the_pooled_feature_of_tokens_has_the_class_token_beside_the_mean_over_places():
    net = adapt(made(TORCHVISION["ViT"]))
    mdp = RoutingMDP(net)
    state = mdp.initial(images(2), labels(2))
    assert state.x.shape == (2, 17, 16) and net.image_size == SIZE
    expected = torch.cat([state.x[:, 0], state.x[:, 1:].mean(dim=1)], dim=1)
    torch.testing.assert_close(mdp.features(state), expected)
    assert mdp.feature_width == 32 and Tokens().width((1, 17, 16)) == 16
    torch.testing.assert_close(Tokens().pool(state.x, torch.float32), state.x.mean(dim=1))


@pytest.mark.parametrize(
    "family, leading, has_class",
    [
        ("timm's ViT with registers", 3, True),
        ("timm's ViT with registers alone", 2, False),
        ("DeiT", 2, True),
    ],
)
def test_registers_are_no_class_token(family, leading, has_class):
    mdp = RoutingMDP(adapted(family))
    state = mdp.initial(images(2), labels(2))
    assert state.x.shape == (2, leading + 16, 16) and mdp.feature_width == (32 if has_class else 16)
    mean = state.x[:, leading:].mean(dim=1)
    expected = torch.cat([state.x[:, 0], mean], dim=1) if has_class else mean
    torch.testing.assert_close(mdp.features(state), expected)


def test_the_pooled_feature_of_a_map_with_the_channels_last_is_the_mean_over_places():
    mdp = RoutingMDP(adapted("Swin"))
    state = mdp.initial(images(2), labels(2))
    assert state.x.shape == (2, 16, 16, 16) and isinstance(mdp.block(0).layout, ChannelsLast)
    torch.testing.assert_close(mdp.features(state), state.x.mean(dim=(1, 2)))


def test_what_stands_between_two_blocks_has_run_before_the_decision():
    mdp = RoutingMDP(adapted("ConvNeXt"))
    state = mdp.initial(images(1), labels(1))
    shapes = [tuple(state.x.shape[1:])]
    for _ in range(mdp.num_decisions):
        state = mdp.transition(state, torch.tensor([False]))
        shapes.append(tuple(state.x.shape[1:]))
    assert shapes == [(16, 8, 8), (32, 4, 4), (32, 4, 4), (32, 4, 4)]
    assert mdp.net.input_shapes() == [(16, 8, 8), (16, 8, 8), (32, 4, 4), (32, 4, 4)]
    assert mdp.net.stages == [0, 0, 1, 1]


def test_blocks_without_a_shortcut_always_run():
    net = adapted("MobileNetV2")
    kept = [block.model for block in net.blocks[1:]]
    every = [each for each in net.model.modules() if hasattr(each, "use_res_connect")]
    assert kept == [each for each in every if each.use_res_connect]
    assert net.blocks[0].model is every[0] and not every[0].use_res_connect


def test_a_resnets_downsampling_is_a_shortcut_that_moves_its_statistics_once():
    net = adapt(made(TORCHVISION["ResNet"]), SIZE).train()
    number = net.stages.index(1)
    norm = net.blocks[number].bypass[1]
    before, count = norm.running_mean.clone(), int(norm.num_batches_tracked)
    rollout(RoutingMDP(net), AlwaysExecute(), images(4), labels(4))
    assert int(norm.num_batches_tracked) == count + 1 and not torch.equal(norm.running_mean, before)


@pytest.mark.parametrize("family", ["ResNet", "ViT", "Swin", "ConvNeXt"])
def test_a_recurrent_gate_learns_on_it(family):
    net = adapted(family)
    mdp = RoutingMDP(net)
    gate = RecurrentGate(net)
    played = rollout(mdp, gate, images(4), labels(4), "straight-through")
    played.loss.mean().backward()
    assert all(each.weight.grad is not None for each in gate.projections)
    assert gate.macs() > 0


def test_a_feed_forward_gate_needs_maps():
    net = adapt(made(TORCHVISION["ConvNeXt"]), 64)
    mdp = RoutingMDP(net)
    logit, _ = FeedForwardGateI(net)(mdp, mdp.initial(images(2, size=64), labels(2)), None)
    assert logit.shape == (2,)
    for family in ("ViT", "Swin"):
        with pytest.raises(ValueError, match=r"needs maps \[B, C, H, W\].*block 1 of .*choose the gate rnn"):
            FeedForwardGateI(adapted(family))


class Own(nn.Module):
    """A residual block of one's own, whose batch norms are listed in another order than they run."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
        self.norm2, self.norm1 = nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        self.fit = nn.Conv2d(width, out, 1) if width != out else None

    def forward(self, x):
        inner = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return inner + (x if self.fit is None else self.fit(x))


class OwnNet(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), Own(8, 8), Own(8, 12), nn.ReLU(), Own(12, 12))
        self.head = nn.Linear(12, num_classes)

    def forward(self, x):
        return self.head(self.body(x).mean(dim=(2, 3)))


@pytest.fixture
def table():
    before = dict(TABLE)
    yield
    TABLE.clear()
    TABLE.update(before)


@torch.no_grad()
def test_a_class_of_ones_own_is_registered(table):
    with pytest.raises(ValueError, match=r"no known residual block in OwnNet.*3 .*test_adapt\.Own"):
        adapt(made(OwnNet), SIZE)
    register(Own, lambda block: nn.Identity() if block.fit is None else block.fit)
    model = made(OwnNet)
    net = adapt(model, SIZE)
    assert len(net.blocks) == 3 and net.blocks[1].bypass is model.body[2].fit
    assert net.blocks[2].prefix is not None  # the ReLU between
    assert torch.equal(net(images(2)), model(images(2)))
    folded = fold_batchnorm(net)
    assert len(net.pairs) == 6 and ("model.body.1.conv1", "model.body.1.norm1") in net.pairs
    torch.testing.assert_close(folded(images(2)), net(images(2)), rtol=1e-3, atol=1e-4)


def test_gradients_of_a_shortcut_that_keeps_its_output(table):
    """A ReLU at its end reads its own output in the backward pass. Every other image executes every block."""
    register(Own, lambda block: nn.Identity() if block.fit is None else block.fit)
    model = OwnNet(CLASSES)
    model.body[2].fit = nn.Sequential(nn.Conv2d(8, 12, 1), nn.ReLU())
    mdp, routes = RoutingMDP(adapt(model.eval(), SIZE)), torch.tensor([[True, True], [False, False]] * 2)
    gradients = []
    for given in (routes, routes.float()):  # the second computes every block for every image
        model.zero_grad()
        rollout(mdp, AlwaysExecute(), images(4), labels(4), routes=given).loss.sum().backward()
        gradients.append(model.body[2].fit[0].weight.grad.clone())
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


class Fewer(nn.Module):
    """Its shortcut is a view of its input: every other place of the first channels."""

    def forward(self, x):
        return x[:, :6, ::2, ::2]


class Narrowing(nn.Module):
    def __init__(self):
        super().__init__()
        self.fit, self.conv = Fewer(), nn.Conv2d(8, 6, 3, stride=2, padding=1)

    def forward(self, x):
        return self.fit(x) + self.conv(x)


@torch.no_grad()
def test_a_shortcut_that_is_a_view_leaves_the_state_as_it_is(table):
    register(Own)
    register(Narrowing, lambda block: block.fit)
    model = OwnNet(CLASSES)
    model.body = nn.Sequential(*model.body[:2], Narrowing(), nn.Conv2d(6, 12, 1))
    mdp = RoutingMDP(adapt(model.eval(), SIZE))
    assert mdp.net.blocks[1].bypass is model.body[2].fit
    state = mdp.initial(images(4), labels(4))
    before, some = state.x.clone(), torch.tensor([True, False, True, False])
    found, mixed = (mdp.transition(state, action) for action in (some, some.float()))
    assert torch.equal(state.x, before)
    torch.testing.assert_close(found.x, mixed.x)
    torch.testing.assert_close(mdp.transition(state, some, inplace=True).x, mixed.x)


class Reader(nn.Module):
    """A block that, with `again`, reads what its convolution gives beside the batch norm."""

    def __init__(self, again: bool = False) -> None:
        super().__init__()
        self.conv, self.norm, self.again = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), again

    def forward(self, x):
        found = self.conv(x)
        return x + F.relu(self.norm(found)) + (found if self.again else 0)


class ClassifierFirst(nn.Module):
    """Its classifier is its first layer in the order of the constructor."""

    def __init__(self, num_classes: int, again: bool = False) -> None:
        super().__init__()
        self.head, self.stem = nn.Linear(8, num_classes), nn.Conv2d(3, 8, 3, stride=4)
        self.body = nn.Sequential(Reader(), Reader(again), Reader())

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean(dim=(2, 3)))


@pytest.mark.parametrize("again", [False, True])
@torch.no_grad()
def test_a_batch_norm_is_folded_only_where_no_function_reads_the_convolution_beside_it(table, again):
    register(Reader)
    net = adapt(made(ClassifierFirst, again=again), SIZE)
    assert len(net.pairs) == (2 if again else 3)
    torch.testing.assert_close(fold_batchnorm(net)(images(2)), net(images(2)), rtol=1e-4, atol=1e-5)


class NormBehind(nn.Module):
    """A block with a convolution as its shortcut, behind which there is a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.fit, self.norm, self.conv = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.norm(self.fit(x)) + self.conv(x)


@torch.no_grad()
def test_a_batch_norm_behind_a_shortcut_stays(table):
    """A skipped image takes the convolution alone."""
    register(Reader)
    register(NormBehind, lambda block: block.fit)
    model = made(ClassifierFirst)
    model.body[1] = NormBehind()
    model.body[1].norm.running_mean.fill_(3.0)
    mdp = RoutingMDP(adapt(model.eval(), SIZE))
    assert len(mdp.net.pairs) == 2
    routes = torch.tensor([[True, True], [False, True]])
    found, expected = (
        rollout(each, AlwaysExecute(), images(2), labels(2), routes=routes).logits
        for each in (mdp.for_inference(), mdp)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_in_bf16_the_classifier_is_what_comes_last_wherever_the_model_defines_it(table):
    register(Reader)
    net = adapt(made(ClassifierFirst), SIZE)
    copied = for_inference(net, "bf16")
    assert copied.dtype == copied.model.head.weight.dtype == torch.float32
    assert copied.model.stem.weight.dtype == copied.model.body[2].conv.weight.dtype == torch.bfloat16
    torch.testing.assert_close(copied(images(2)), net(images(2)), rtol=0.1, atol=0.05)


def test_a_block_that_changes_the_shape_without_a_shortcut_is_no_decision(table):
    register(Own, identity)
    net = adapt(made(OwnNet), SIZE)
    assert [type(block.model) for block in net.blocks] == [Own, Own]
    assert net.blocks[1].model is net.model.body[4]


class Skipping(OwnNet):
    """A value passes the second block by."""

    def forward(self, x):
        first = self.body[1](self.body[0](x))
        last = self.body[4](self.body[3](self.body[2](first)))
        return self.head(last.mean(dim=(2, 3)) + first.mean())


class Paired(nn.Module):
    """Takes and gives two features."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, pair):
        return self.conv(pair[0]), pair[1]


class PairedNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, CLASSES)
        self.body = nn.ModuleList(Paired() for _ in range(3))

    def forward(self, x):
        pair = self.stem(x), self.stem(x)
        for block in self.body:
            pair = block(pair)
        return self.head((pair[0] + pair[1]).mean(dim=(2, 3)))


def test_a_block_of_two_features_is_no_decision(table):
    register(Paired)
    with pytest.raises(ValueError, match="fewer than two blocks in a row.*called with one feature"):
        adapt(PairedNet(), 16)


class Dropping(Own):
    """Its dropout is a function and not a layer."""

    def forward(self, x):
        return F.dropout(super().forward(x), 0.5, self.training)


def test_functional_dropout_is_off_in_a_block_with_a_projection(table):
    register(Dropping, lambda block: nn.Identity() if block.fit is None else block.fit)
    model = OwnNet(CLASSES).train()
    model.body[1], model.body[2] = Dropping(8, 8), Dropping(8, 12)
    _, block, *_ = adapt(model, SIZE).blocks
    x = torch.rand(2, 8, 8, 8)
    assert model.body[2].training and block.bypass is model.body[2].fit
    first, second = (block.execute(x, block.shortcut(x)) for _ in range(2))
    assert torch.equal(first, second) and not torch.equal(block(x), block(x))


def test_a_block_that_something_passes_by_is_no_decision(table):
    register(Own, lambda block: nn.Identity() if block.fit is None else block.fit)
    with pytest.raises(ValueError, match="fewer than two blocks in a row.*no other value .* bypasses it"):
        adapt(made(Skipping), SIZE)


def test_an_adapter_without_shortcuts_is_not_asked_for_again(table):
    register(Own, lambda block: None)
    with pytest.raises(
        ValueError, match="among the 3 known ones of OwnNet.*its adapter returns a shortcut"
    ) as it:
        adapt(made(OwnNet), SIZE)
    assert "register" not in str(it.value)


def test_a_layout_of_other_dimensions_is_refused(table):
    register(Own, layout="tokens")
    with pytest.raises(
        ValueError, match=r"Own has a feature of shape \(1, 8, 15, 15\), .* for tokens \[B, T, D\]"
    ):
        adapt(made(OwnNet), SIZE)


def test_errors_say_what_came():
    with pytest.raises(ValueError, match=r"no known residual block in VGG.*registers? its class"):
        adapt(torch.nn.modules.module.Module.eval(TORCH_VGG()))
    with pytest.raises(ValueError, match="VisionTransformer does not take images of 48 pixels.*image_size"):
        adapt(made(TORCHVISION["ViT"]), 48)
    with pytest.raises(ValueError) as refused:
        adapt(made(TORCHVISION["ViT"]), 64)
    assert "Expected 32 but got 64" in str(refused.value) and "Proxy" not in str(refused.value)
    with pytest.raises(ValueError, match="unknown layout 'map'"):
        register(Own, identity, "map")
    with pytest.raises(TypeError, match="adapter is 'maps'; expected a function"):
        register(Own, "maps")
    for block in ("Own", Own(3, 3)):
        with pytest.raises(TypeError, match="block is ('Own'|a Own); expected the class of the blocks"):
            register(block)
    with pytest.raises(TypeError, match="model is 'resnet18'; expected a torch.nn.Module"):
        adapt("resnet18")


@pytest.mark.parametrize("size", ["64", 64.0, (64, 64), -5, 0, True])
def test_a_size_is_a_number_of_pixels(size):
    with pytest.raises(ValueError, match="image_size is .*; expected a number of pixels, such as 224"):
        adapt(made(TORCHVISION["ResNet"]), size)


def test_what_is_compiled_or_adapted_already_is_refused():
    model = made(TORCHVISION["ResNet"])
    with pytest.raises(ValueError, match="give the model before torch.compile"):
        adapt(torch.compile(model), SIZE)
    with pytest.raises(ValueError, match="AdaptedNetwork is adapted already"):
        adapt(adapt(model, SIZE), SIZE)


@pytest.mark.parametrize("family", ["ResNet", "ConvNeXt", "ViT", "Swin", "EfficientNet"])
@torch.no_grad()
def test_a_network_can_be_pickled(family):
    mdp, stored = RoutingMDP(adapted(family)), io.BytesIO()
    torch.save(mdp.net, stored)
    stored.seek(0)
    opened = RoutingMDP(torch.load(stored, weights_only=False))
    routes = routes_of(mdp, 3)
    one, other = (
        rollout(each, AlwaysExecute(), images(3), labels(3), routes=routes) for each in (mdp, opened)
    )
    assert torch.equal(one.logits, other.logits) and not routes.all()


def TORCH_VGG() -> nn.Module:
    from torchvision.models import vgg11

    with torch.device("meta"):
        return vgg11(num_classes=CLASSES)


def test_the_table_names_classes_that_exist():
    import importlib

    for name in TABLE:
        module, _, kind = name.rpartition(".")
        if module.startswith("timm"):
            pytest.importorskip("timm")
        assert qualified(getattr(importlib.import_module(module), kind)) == name


def test_training_mode_and_size_are_the_models():
    model = made(TORCHVISION["ViT"]).train()
    net = adapt(model)
    assert net.training and model.training and net.image_size == VIT["image_size"]
    assert net.model is model and not net.eval().model.training


def test_frozen_batch_norms_stay_frozen():
    model = made(TORCHVISION["ResNet"]).train()
    frozen = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]
    for norm in frozen:
        norm.eval()
    net = adapt(model, SIZE)
    assert net.training and model.training and model.layer1.training
    assert not any(norm.training for norm in frozen)


def test_a_single_image_of_one_position_is_normalised_by_running_statistics():
    """PyTorch refuses to compute statistics from one value per channel; ResNet-18 ends in 1×1 maps here."""
    net = adapt(made(TORCHVISION["ResNet"]), SIZE)
    mdp, last = RoutingMDP(net), net.blocks[-1]
    with torch.no_grad():
        state = mdp.initial(images(3), labels(3))
        while state.t < mdp.num_decisions - 1:
            state = mdp.transition(state, torch.ones(3, dtype=torch.bool))
        expected = state.x.clone()
        expected[1] = last.execute(state.x[1:2], state.x[1:2])[0]
        net.train()
        found = mdp.transition(state, torch.tensor([False, True, False]))
    assert state.x.shape[2:] == (1, 1)
    torch.testing.assert_close(found.x, expected)
    assert all(norm.training for norm in net.modules() if isinstance(norm, nn.BatchNorm2d))
