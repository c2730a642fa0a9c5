"""Records against the networks that they are of."""

import torch
from test_chain import Picky, threshold_at_median
from test_mdp import lively_net

from skipnet_rl.chain import Chain, ChainMDP
from skipnet_rl.evaluate import evaluate
from skipnet_rl.member import Member
from skipnet_rl.recording import record, replayed


def test_replaying_is_playing(tiny_net, tiny_images):
    chain = Chain([Member(tiny_net, Picky(), "gated"), Member(lively_net(8).float())], mix=0.3)
    records = record(chain, tiny_images, batch_size=5)
    again = replayed(chain)
    assert again.names == chain.names == ["gated", "ResNet-8"] and again.mix.tolist() == [0.3]
    live, replay = ChainMDP(chain, 0.2), ChainMDP(again, 0.2)
    assert live.payment == replay.payment and live.whole_macs == replay.whole_macs
    policy = threshold_at_median(live, tiny_images)
    expected = evaluate(live, policy, tiny_images)
    found = evaluate(replay, policy, records, batch_size=7)
    assert torch.equal(found.routes, expected.routes) and 0 < found.rate < 1
    assert torch.equal(found.compute_flops, expected.compute_flops)
    for what in ("confidence", "loss", "returns"):
        torch.testing.assert_close(getattr(found, what), getattr(expected, what), rtol=1e-4, atol=1e-5)


def test_records_are_a_set_of_images(tiny_net, tiny_images):
    chain = Chain([Member(tiny_net), Member(tiny_net)])
    records = record(chain, tiny_images)
    assert len(records) == 12 and records.name == "noise" and records.classes == tiny_images.classes
    some = records.subset(torch.tensor([3, 1]), "selection")
    assert some.split == "selection" and some.labels.tolist() == [3, 1]
    assert torch.equal(some.batch(torch.tensor([1]))[0][0], records.answers[1])
    assert (some.picture(0) == tiny_images.picture(3)).all()
    assert torch.equal(records.sized(64).to("cpu").first(2).answers, records.answers[:2])
    batch = records.training_batch(torch.tensor([5]), torch.Generator())
    assert torch.equal(batch[0], records.answers[5:6]) and batch[1].tolist() == [5]
