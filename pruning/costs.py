def unit_flops(groups, network, forward):
    raise NotImplementedError
