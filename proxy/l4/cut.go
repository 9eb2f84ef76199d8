package l4

// Cut ends the live flows that match picks and returns how many it ended. Their
// connections are reset, and the access log says "cut". Flows that begin
// meanwhile are not looked at. match is called without locks held, once for
// each flow, by the calling goroutine.
//
// A connection handed to Config.HTTP is closed with all its exchanges. What ends
// a UDP session does not keep the client from beginning another one.
func (s *Server) Cut(match func(FlowInfo) bool) (ended int) {
	for _, f := range s.snapshot() {
		if match(f.describe()) && f.stop(cutOff, nil) {
			ended++
		}
	}
	return ended
}
