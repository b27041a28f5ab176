"""Sources of labelled images: bundled digits, CIFAR-10, image folders and safetensors files."""
