"""A download that fails says which, without what is secret in its address."""

from tadvae.base.download import download


def test_an_address_with_secrets(refused, tmp_path):
    url = "http://me:hunter2@127.0.0.1:9/screens/x.h5ad?X-Amz-Signature=hunter2"
    sentence = refused(download, url, tmp_path / "x.h5ad", 1.0, "put the file there yourself")
    assert "http://127.0.0.1:9/screens/x.h5ad: expected a file" in sentence
    assert "hunter2" not in sentence
    plain = refused(download, "http://127.0.0.1:9/x", tmp_path / "x", 1.0, "put the file there yourself")
    assert "HTTPConnectionPool" in plain
