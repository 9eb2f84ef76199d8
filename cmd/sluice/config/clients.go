package config

import (
	"time"

	"github.com/remotegpu/sluice/router"
)

// Clients bound what a client's HTTP connection may take.
type Clients struct {
	// HeadTimeout is from the first byte of a request head to its last.
	// Default: 15s.
	HeadTimeout time.Duration `json:"head_timeout"`
	// HeadSize bounds a request head. Default: 64KiB.
	HeadSize router.Bytes `json:"head_size"`
	// IdleTimeout ends a connection without an exchange, and one whose client
	// sends nothing of a body or takes nothing of a response. Default: 2m.
	IdleTimeout time.Duration `json:"idle_timeout"`
	// Streams bounds the exchanges of one HTTP/2 or HTTP/3 connection at a
	// time. Default: 128.
	Streams int `json:"streams" range:"1,1000"`
}

func (c Clients) withDefaults() Clients {
	if c.HeadTimeout == 0 {
		c.HeadTimeout = 15 * time.Second
	}
	if c.HeadSize == 0 {
		c.HeadSize = 64 << 10
	}
	if c.IdleTimeout == 0 {
		c.IdleTimeout = 2 * time.Minute
	}
	if c.Streams == 0 {
		c.Streams = 128
	}
	return c
}

// checkClients refuses limits that would shut out ordinary clients, or let one
// of them take much.
func (c Config) checkClients() error {
	const least, most = time.Second, 10 * time.Minute
	switch l := c.Clients; {
	case l.HeadTimeout < least || l.HeadTimeout > most:
		return wrong("clients.head_timeout", "must be from %v to %v, not %v", least, most, l.HeadTimeout)
	case l.HeadSize < 8<<10 || l.HeadSize > 1<<20:
		return wrong("clients.head_size", "must be from 8KiB to 1MiB: browsers send some kilobytes of cookies, and each client may have the node hold as much")
	case l.IdleTimeout < least || l.IdleTimeout > 24*time.Hour:
		return wrong("clients.idle_timeout", "must be from %v to 24h, not %v", least, l.IdleTimeout)
	}
	return nil
}
