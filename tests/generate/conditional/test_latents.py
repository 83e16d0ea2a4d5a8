import pytest
import torch

from fewer.core.errors import ConfigError
from fewer.generate.autoencoder import DCAutoencoder
from fewer.generate.conditional.latents import encode_pictures
from fewer.generate.conditional.pictures import LabelledPictures
from tests.generate.autoencoder.conftest import tiny_config


def test_every_picture_is_encoded_as_it_would_be_alone() -> None:
    autoencoder = DCAutoencoder(tiny_config("no_latent_shortcuts")).eval()
    images = torch.rand(5, 3, 8, 8) * 2 - 1
    pictures = LabelledPictures(images, torch.tensor([0, 1, 0, 1, 1]), ("a", "b"))
    encoded = encode_pictures(autoencoder, pictures, batch=2)
    assert encoded.images.shape == (5, 4, 2, 2) and torch.equal(encoded.labels, pictures.labels)
    for row in range(5):
        assert torch.allclose(encoded.images[row], autoencoder.encode(images[row : row + 1])[0], atol=1e-5)
    odd = LabelledPictures(torch.zeros(2, 3, 9, 9), torch.tensor([0, 1]), ("a", "b"))
    with pytest.raises(ConfigError, match="size 9 does not divide by the autoencoder's 4; try 12"):
        encode_pictures(autoencoder, odd)
