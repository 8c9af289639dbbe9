"""Published models are read from their files under the layout in which they live, and no other."""

import json
import zipfile

import pytest
import torch

from fastnca import FileFormatError, import_model
from fastnca.importing import certify_model, read_networks
from fastnca.importing.growth import certify
from fastnca.importing.layouts import layouts_to_try, parse_layout
from fastnca.importing.network import Network, NoModelError
from fastnca.pictures.render import seed_of
from tests.one_thread import one_thread  # noqa: F401 - by being imported
from tests.published import WEIGHTS, find, growing_names, read_growing, read_texture, texture_file

TEXTURES = 20


def grow(model, steps=200, size=64):
    return model.requires_grad_(False).run_steps(seed_of(model, size), steps, 0.5, seed=7)


def assert_alive(model):
    state = grow(model)
    assert state.abs().max() < 20
    if model.metadata.get("visible") == "texture":
        assert state[0, :3].std(dim=(1, 2)).max() > 0.02
    else:
        assert (state[:, 3] > 0.1).sum() > 400


def names_of(names):
    """List names where the published files are, or one whose test is skipped."""
    return list(names()) if WEIGHTS.exists() else ["missing"]


@pytest.mark.parametrize("name", names_of(growing_names))
def test_every_growing_model_is_imported_as_its_article_reads_it(name):
    model = import_model(find(f"distill-growing/{name}.json"))
    assert model.rule.changed == ()
    assert model.metadata["layout"] == "blocks:identity,sobel_x,sobel_y"
    assert model.metadata["fill_hidden"] is True
    for entry, tensor in read_growing(name).items():
        assert torch.equal(model.state_dict()[entry], tensor), entry
    assert_alive(model)


@pytest.mark.one_in(20)
@pytest.mark.parametrize("number", range(TEXTURES))
def test_textures_are_imported_as_their_article_reads_them(number):
    path = find("google-textures.json")
    name = list(texture_file()[0])[number * 6]
    if name == "mixed4c_1x1_40-mondrian":
        with pytest.raises(FileFormatError, match="one colour everywhere"):
            import_model(path, name=name)
        return
    model = import_model(path, name=name)
    assert model.rule.clamp == (-2, 2)
    for entry, tensor in read_texture(name).items():
        assert (model.state_dict()[entry] - tensor).abs().max() < 1e-6, entry
    assert_alive(model)


@pytest.mark.parametrize("name", ["red_model", "red_model_60perc", "no_tail_model"])
def test_adversarial_models_are_imported(name):
    model = import_model(find("google-adversarial.zip"), name=name)
    assert model.rule.changed == ()
    assert_alive(model)


@pytest.mark.parametrize("name", ["chess", "dots", "dots_bubbles", "dots_chess"])
def test_whole_modules_are_imported_without_their_class(name):
    model = import_model(find("google-grafting.zip"), name=name)
    assert model.rule.alive == "none"
    assert model.metadata["layout"] == "interleaved:identity,8*sobel_x,8*sobel_y,8*laplacian"
    assert_alive(model)


def test_the_legacy_file_is_imported():
    model = import_model(find("growing-legacy.pth"))
    assert model.metadata["layout"] == "blocks:identity,sobel_y,sobel_x"
    assert not model.update_net[2].bias.any()
    assert_alive(model)


def test_the_planarian_is_the_same_in_all_its_files(tmp_path):
    """Graph, checkpoint and bare shard are equal; the 8-bit file is within half of its steps."""
    archive = zipfile.ZipFile(find("google-planarian.zip"))
    archive.extractall(tmp_path)
    graph = import_model(find("google-planarian.zip"))
    folder = tmp_path / "train_log"
    shard = folder / "8000.data-00001-of-00002"
    models = [
        import_model(folder / "8000.json"),
        import_model(folder / "8000.index"),
        import_model(shard),
    ]
    (folder / "8000.index").unlink()
    models.append(import_model(shard))
    quantised = import_model(find("distill-growing/ex3_planarian.json"))
    layers = json.loads(find("distill-growing/ex3_planarian.json").read_text())
    for name, tensor in graph.state_dict().items():
        assert all(torch.equal(model.state_dict()[name], tensor) for model in models), name
        if name.startswith("update_net"):
            layer = layers[int(name[11]) // 2]
            scale = layer["weight_scale" if name.endswith("weight") else "bias_scale"]
            furthest = (quantised.state_dict()[name] - tensor).abs().max()
            assert 0 < furthest <= 0.505 * scale / 255, name


def permuted(network, seed):
    """Return the network with its first layer's columns in a random order."""
    order = torch.randperm(
        network.weights[0].shape[1], generator=torch.Generator().manual_seed(seed)
    )
    return type(network)(
        [network.weights[0][:, order], *network.weights[1:]],
        network.biases,
        network.source,
        layout=network.layout,
        families=network.families,
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "file", ["distill-growing/ex2_eye.json", "google-planarian.zip", "growing-legacy.pth"]
)
def test_a_permuted_copy_is_refused(file, seed):
    path = find(file)
    (network,) = read_networks(path).values()
    with pytest.raises(FileFormatError, match="does not live in 128 steps under any of 6 layouts"):
        certify_model(path, {"": permuted(network, seed)}, "")


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", ["dots", "mondrian", "mixed4b_pool_reduce_40"])
def test_a_permuted_texture_is_refused(name):
    path = find("google-textures.json")
    networks = {name: permuted(read_networks(path)[name], 1)}
    with pytest.raises(FileFormatError, match="does not live"):
        certify_model(path, networks, name)


def test_the_arrangement_is_found_where_nobody_says_it():
    """Blocks and interleaved columns of one model are told apart, whatever the file says."""
    path = find("distill-growing/ex3_lizard.json")
    (network,) = read_networks(path).values()
    blocks = network.weights[0]
    columns = blocks.unflatten(1, (3, 16)).transpose(1, 2).flatten(1)
    for weight, arrangement in ((blocks, "blocks"), (columns, "interleaved")):
        unknown = type(network)([weight, network.weights[1]], network.biases, "torch file")
        _, certificate = certify_model(path, {"": unknown}, "")
        assert certificate.chosen.layout.arrangement == arrangement
        assert len(certificate.others) == 11
        assert "values of" in str(certificate)


def test_a_file_in_another_order_than_its_format_has_is_read_and_says_so():
    path = find("distill-growing/ex3_lizard.json")
    (network,) = read_networks(path).values()
    columns = network.weights[0].unflatten(1, (3, 16)).transpose(1, 2).flatten(1)
    turned = type(network)(
        [columns, network.weights[1]], network.biases, network.source, layout="blocks"
    )
    model, certificate = certify_model(path, {"": turned}, "")
    assert "files of this format usually have the layout blocks" in str(certificate)
    weight = read_growing("ex3_lizard")["update_net.0.weight"]
    assert torch.equal(model.update_net[0].weight, weight)


def test_growth_cannot_tell_x_from_y():
    """Exchanged Sobel filters grow the transposed picture, exactly: the rest has no direction."""
    path = find("distill-growing/ex3_lizard.json")
    upright = import_model(path).eval()
    turned = import_model(path, layout="blocks:identity,sobel_y,sobel_x").eval()
    mirrored = import_model(path, layout="blocks:identity,-sobel_x,sobel_y").eval()
    state = other = mirror = seed_of(upright, 33)  # whose middle is its centre
    with torch.no_grad():
        for _ in range(30):
            state, other, mirror = upright(state), turned(other), mirrored(mirror)
    assert (state - state.transpose(2, 3)).abs().max() > 0.1
    assert (state - other.transpose(2, 3)).abs().max() < 1e-4
    assert (state - mirror.flip(3)).abs().max() < 1e-4
    orders = {each.filters for each in layouts_to_try(next(iter(read_networks(path).values())))}
    assert all(names.index("sobel_x") < names.index("sobel_y") for names in orders)


def expanding():
    """Return a network that reads nothing and adds to alpha: it lives under every layout."""
    bias = torch.zeros(16)
    bias[3] = 0.1
    return Network([torch.zeros(8, 48), torch.zeros(16, 8)], [None, bias], "torch file")


def test_two_layouts_that_live_are_refused():
    with pytest.raises(FileFormatError, match=r"lives under 12 layouts, .*choose with --layout"):
        certify_model("a.pt", {"": expanding()}, "")


def test_one_of_two_layouts_that_live_may_be_chosen():
    certificate = certify(expanding(), "blocks")
    assert certificate.chosen.layout == parse_layout("blocks", 3)
    assert certificate.others == []


def test_a_model_that_does_nothing_does_not_live():
    network = expanding()
    with pytest.raises(NoModelError, match="1 living cells"):
        certify(Network(network.weights, [None, None], "torch file"), "blocks")
