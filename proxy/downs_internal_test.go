package proxy

import (
	"errors"
	"fmt"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remotegpu/sluice/router"
)

// What is told of backends follows their targets, once for each change.
func TestBackendDowns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		said := map[string]string{}
		times := 0
		d := newBackendDowns(func(key string, err error) {
			times++
			said[key] = fmt.Sprint(err)
		})
		down := map[*router.Backend]error{}
		d.down = func(b *router.Backend) error { return down[b] }
		a, b, c := &router.Backend{}, &router.Backend{}, &router.Backend{}
		settle := func(wantTimes int, want map[string]string) {
			t.Helper()
			time.Sleep(2 * downsSettle)
			synctest.Wait()
			if times != wantTimes || !maps.Equal(said, want) {
				t.Errorf("told %d times, %v; want %d times, %v", times, said, wantTimes, want)
			}
			clear(said)
			times = 0
		}
		d.apply([]checked{{"ports/tcp/1", a}, {"ports/tcp/1", b}, {"routes/c", c}}, nil)
		settle(0, map[string]string{})

		down[a], down[c] = errors.New("a is down"), errors.New("c is down")
		for range 10 { // many targets at one moment
			d.changed()
		}
		settle(2, map[string]string{"ports/tcp/1": "backend_down: a is down", "routes/c": "backend_down: c is down"})
		d.changed()
		settle(0, map[string]string{}) // nothing is new

		delete(down, a)
		d.changed()
		settle(1, map[string]string{"ports/tcp/1": "<nil>"})

		// An edit takes a backend that is down away, and brings another one.
		other := &router.Backend{}
		d.apply([]checked{{"routes/c", other}}, []checked{{"routes/c", c}})
		settle(1, map[string]string{"routes/c": "<nil>"})

		// Deleted and put again before anybody looks, and no better, a key has
		// that told once more, and one that fares well by now has that told.
		again := &router.Backend{}
		down[other], down[again] = errors.New("down"), errors.New("down")
		d.changed()
		settle(1, map[string]string{"routes/c": "backend_down: down"})
		d.apply(nil, []checked{{"routes/c", other}})
		d.apply([]checked{{"routes/c", again}}, nil)
		settle(1, map[string]string{"routes/c": "backend_down: down"})
		d.apply([]checked{{"routes/c", a}}, []checked{{"routes/c", again}})
		settle(1, map[string]string{"routes/c": "<nil>"})
		d.changed()
		settle(0, map[string]string{})

		d.stop()
		down[other] = errors.New("down")
		d.changed()
		settle(0, map[string]string{})
	})
}
