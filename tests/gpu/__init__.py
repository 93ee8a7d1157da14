import os

from heredity.core.host import Device

GPU = Device.parse(os.environ.get("HEREDITY_TEST_DEVICE", "cuda:0"))
