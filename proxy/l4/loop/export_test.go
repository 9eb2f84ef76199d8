package loop

// FlowsPerLoop returns how many flows each loop has.
func FlowsPerLoop(g *Group) (n []int64) {
	for _, l := range g.loops {
		n = append(n, l.slab.live.Load())
	}
	return n
}

// KeepaliveAfter has the sockets of backends probe their peers from when a flow
// is so many ticks old. Call it while no loop runs.
func KeepaliveAfter(ticks uint32) (restore func()) {
	was := keepaliveAfter
	keepaliveAfter = ticks
	return func() { keepaliveAfter = was }
}
