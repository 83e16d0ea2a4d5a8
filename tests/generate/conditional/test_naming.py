from fewer.generate.conditional.naming import file_tensors, generator_names
from tests.generate.conditional.conftest import tiny, upgraded


def test_static_tensors_keep_their_names_and_generators_stand_beside() -> None:
    model = upgraded("cat tokens")
    names = file_tensors(model).keys()
    assert tiny("cat tokens").state_dict().keys() <= names
    rest = names - tiny("cat tokens").state_dict().keys()
    assert "can.attn_out.a.weight" in rest and "blocks.1.ffn.can.b.weight" in rest
    assert len(names) == len(model.state_dict())
    assert len(set(generator_names(model.layers).values())) == len(model.can)
