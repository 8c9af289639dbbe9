"""The tutorial's training function."""

from torch import Tensor

from fastnca.module import NeuralCA
from fastnca.training.callbacks import StepResult
from fastnca.training.config import TrainConfig
from fastnca.training.trainer import PoolTrainer


def train_nca(
    model: NeuralCA,
    target: Tensor,
    num_epochs: int = 500,
    pool_size: int = 256,
    batch_size: int = 4,
    lr: float = 2e-3,
) -> list[float]:
    """Train a Neural CA with a pool of states; prints the loss every 100 epochs.

    Args:
        model: the model; it is put into training mode.
        target: `[1, 4, H, W]`, RGBA, of the model's dtype and device.
        num_epochs: iterations.
        pool_size: states in the pool.
        batch_size: states per iteration.
        lr: learning rate of Adam.

    Returns:
        The loss of every iteration.

    Raises:
        DivergedError: the loss was not finite ten times in a row.
        TypeError, ValueError: an argument does not fit.
    """

    def report(result: StepResult) -> None:
        epoch = result.iteration - 1
        if epoch % 100 == 0:
            print(f"Epoch {epoch}, Loss: {result.loss:.6f}")

    config = TrainConfig(
        iterations=num_epochs, pool_size=pool_size, batch_size=batch_size, learning_rate=lr
    )
    return PoolTrainer(model, target, config).fit(progress=False, callbacks=[report])
