package proxy

import (
	proxyhttp "github.com/remotegpu/sluice/proxy/http"
	"github.com/remotegpu/sluice/proxy/l4"
	"github.com/remotegpu/sluice/proxy/l4/loop"
)

// relayUpgraded has the event loops copy what passes over a connection that has
// changed protocols: there is nothing of HTTP left in it.
func (e *Engine) relayUpgraded(u proxyhttp.Upgraded) (proxyhttp.Relayed, bool, error) {
	flow, taken, err := e.l4.Join(l4.Joint{
		Client: u.Client, Backend: u.Backend, ToBackend: u.ToBackend, ToClient: u.ToClient, IdleTimeout: u.IdleTimeout,
		Ended: func(r loop.Report) {
			u.Ended(proxyhttp.RelayEnd{
				Up: r.Up, Down: r.Down, Idle: r.End == loop.Idle, Stalled: r.End == loop.Stalled, Stopped: r.End == loop.Stopped,
			})
		},
	})
	return relayedFlow{flow}, taken, err
}

// relayedFlow is a flow of a loop as package http sees it.
type relayedFlow struct{ flow loop.Flow }

func (r relayedFlow) Moved() (up, down int64) {
	up, down, _ = r.flow.Bytes()
	return up, down
}

func (r relayedFlow) Cut() { r.flow.Cut(nil) }
