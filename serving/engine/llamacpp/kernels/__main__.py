import sys

from serving.engine.llamacpp.kernels.build import main

sys.exit(main())
