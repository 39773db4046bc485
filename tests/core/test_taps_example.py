"""What a stranger does with a generator of their own."""

import torch
from torch import nn

from memcomp import CompensationConfig, KeypointTap, MemoryCompensation, Tap, inject


class MyGenerator(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv2d(3, 64, 4, stride=4)
        self.decoder = nn.ConvTranspose2d(64, 3, 4, stride=4)

    def forward(self, source, flow, kp_source):
        warped = nn.functional.grid_sample(self.encoder(source), flow, align_corners=False)
        return self.decoder(warped).sigmoid()


def test_a_generator_of_ones_own_in_ten_lines():
    torch.manual_seed(0)
    generator = MyGenerator()
    inputs = torch.rand(2, 3, 64, 64), torch.rand(2, 16, 16, 2) * 2 - 1, torch.rand(2, 10, 2) * 2 - 1
    alone = generator(*inputs)

    config = CompensationConfig.paper(start="identity", memory_channels=64)
    memory = MemoryCompensation([64], keypoints=10, config=config)
    handle = inject(generator, memory, [Tap("decoder")], KeypointTap("", argument="kp_source", key=None))

    assert torch.equal(generator(*inputs), alone)
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3)  # the memory's parameters are among them
    with handle.compensation.recording() as record:
        loss = (generator(*inputs) - inputs[0]).abs().mean() + record.consistency_loss()
    loss.backward()
    optimizer.step()
    assert not torch.equal(generator(*inputs), alone)
    handle.remove()
    assert not any("memory" in key for key in generator.state_dict())
