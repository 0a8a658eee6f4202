"""Places for copies: a folder, and a server that speaks S3, which moto starts in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from servers import free_port

BUCKET = "copies"


@contextmanager
def s3_server(port: int = 0) -> Iterator[dict[str, str]]:
    """A server with a bucket, which keeps it while this process lives; gives the environment in which it is found."""
    import boto3
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()  # which knows nothing of changes in the environment
    port = port or free_port()
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    try:
        url = f"http://127.0.0.1:{port}"
        keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=url, **keys).create_bucket(Bucket=BUCKET)
        yield {
            "LORAFRONT_STORAGE": f"s3://{BUCKET}/searches",
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        server.stop()


def folder_store(folder: Path) -> dict[str, str]:
    """The environment of a folder."""
    return {"LORAFRONT_STORAGE": folder.absolute().as_uri()}
