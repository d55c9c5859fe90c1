"""Puts a module's runtime parameters and barriers where the encoder of `instructions` has them.

mlir-aie would place them where it likes; one xclbin serves streams of every size, so they are
fixed.
"""

from aieflow.ops.errors import PlanError
from aieflow.ops.npu.iron_release import Handle


def pin(module: Handle, address: int, lock: int, cores: int, ir: Handle) -> None:
    """Fix the address of each parameter buffer and the number of each barrier's lock.

    Raises PlanError unless every core has one of both.
    """
    word = ir.IntegerType.get_signless(32, context=module.context)
    found = {"aie.buffer": 0, "aie.lock": 0}  # before compilation there are no others

    def visit(operation: Handle) -> Handle:
        name = operation.name
        if name in found:
            found[name] += 1
            key, value = ("address", address) if name == "aie.buffer" else ("lockID", lock)
            operation.attributes[key] = ir.IntegerAttr.get(word, value)
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    if any(count != cores for count in found.values()):
        raise PlanError(
            f"expected a parameter buffer and a barrier in each of {cores} cores, found {found}: "
            "use the release that `aieflow npu doctor` names"
        )
