"""Where labelled images come from: bundled digits, CIFAR-10, image folders and safetensors files."""
