package proxy

import (
	"fmt"
	"os"
	"runtime"

	"github.com/remotegpu/sluice/proxy/listen/handover"
	"github.com/remotegpu/sluice/proxy/listen/steer"
)

// PortsMode says how mapped ports are opened.
type PortsMode string

// The ports modes.
const (
	// PortsAuto is PortsSteer where the machine allows it, else PortsBind.
	PortsAuto PortsMode = "auto"
	// PortsBind opens a socket for each mapped port.
	PortsBind PortsMode = "bind"
	// PortsSteer has all mapped ports come to a few sockets, by a program in
	// the kernel. See proxy/listen/steer.
	PortsSteer PortsMode = "steer"
)

// maxListeners bounds the TCP listeners that steered connections are spread
// over; more only cost their sockets.
const maxListeners = 8

// chooseMode opens what the ports mode takes.
func (e *Engine) chooseMode() error {
	why := "ports_mode says so"
	switch e.cfg.PortsMode {
	case PortsBind:
		e.mode, e.mapped.opener = PortsBind, newBoundPorts(e)
	case PortsAuto, PortsSteer, "":
		var inherited []*os.File
		for _, files := range e.cfg.Inherited.TakeAll(steeredNetwork) {
			inherited = append(inherited, files...)
		}
		defer handover.CloseAll(inherited)
		s, err := steer.Open(steer.Config{Listeners: min(runtime.GOMAXPROCS(0), maxListeners), Inherited: inherited})
		switch {
		case err == nil:
			if e.mapped.opener, err = newSteeredPorts(e, s); err != nil {
				return err
			}
			e.mode = PortsSteer
			if e.cfg.PortsMode != PortsSteer {
				why = "the kernel allows it"
			}
		case e.cfg.PortsMode == PortsSteer:
			return fmt.Errorf("ports_mode is steer, which cannot be had here (write auto or bind to do without): %w", err)
		default:
			e.mode, e.mapped.opener, why = PortsBind, newBoundPorts(e), err.Error()
		}
	default:
		return fmt.Errorf("proxy: ports mode %q is not known; it is auto, bind or steer", e.cfg.PortsMode)
	}
	e.cfg.Logger.Info("opening mapped ports", "mode", e.mode, "why", why)
	e.metrics.portsMode.WithLabelValues(string(e.mode)).Set(1)
	return nil
}

// PortsMode returns how the mapped ports are opened: PortsBind or PortsSteer.
func (e *Engine) PortsMode() PortsMode { return e.mode }
