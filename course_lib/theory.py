def collective_bytes(op, payload_bytes, group_size):
    r=(group_size-1)/group_size
    return payload_bytes*{"all_reduce":2*r,"send":1,"recv":0,"barrier":0}.get(op,r)
