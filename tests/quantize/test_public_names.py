import fewer.quantize as room


def test_every_public_name_can_be_imported_twice_and_is_no_module() -> None:
    for _ in range(2):
        for name in room.__all__:
            found = getattr(room, name)
            assert type(found).__name__ != "module", name
