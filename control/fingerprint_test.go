package control_test

import (
	"math/rand/v2"
	"testing"

	"github.com/remotegpu/sluice/control/etcd"
)

// TestFingerprintIsOfWhatIsInForce has nodes come to the same values by
// different ways, and to different ones.
func TestFingerprintIsOfWhatIsInForce(t *testing.T) {
	kvs := []etcd.KV{
		{Key: "ports/tcp/20022", Value: []byte("10.0.0.1:22"), ModRev: 3},
		{Key: "ports/tcp/20023", Value: []byte("10.0.0.1:23"), ModRev: 2},
		{Key: "routes/a", Value: []byte(`{"host":"a.test","respond":{}}`), ModRev: 4},
	}
	loaded := newNode(t, "")
	if f := loaded.Fingerprint().String(); f != "000000000000" {
		t.Errorf("that of nothing is %s", f)
	}
	loaded.Load(4, kvs)
	want := loaded.Fingerprint()
	if len(want.String()) != 12 || want == 0 {
		t.Errorf("it is %v", want)
	}

	edited := newNode(t, "")
	edited.Load(1, nil)
	edited.Change(9, []etcd.Change{put("ports/tcp/20023", "10.0.0.1:23", 2), put("ports/tcp/20022", "10.0.0.9:22", 3), put("routes/b", `{"host":"b.test","respond":{}}`, 4)})
	if edited.Fingerprint() == want {
		t.Error("other values have the same one")
	}
	edited.Change(12, []etcd.Change{del("routes/b", 10), put("routes/a", `{"host":"a.test","respond":{}}`, 11), put("ports/tcp/20022", "10.0.0.1:22", 12)})
	if got := edited.Fingerprint(); got != want {
		t.Errorf("after edits it is %v, after a load %v", got, want)
	}
	// A refused value changes nothing, nor does the last good one put again.
	edited.Change(13, []etcd.Change{put("ports/tcp/20022", "nonsense", 13), put("ports/tcp/20099", "nonsense", 13)})
	edited.Change(14, []etcd.Change{put("ports/tcp/20022", "10.0.0.1:22", 14), del("ports/tcp/20099", 14)})
	if got := edited.Fingerprint(); got != want {
		t.Errorf("after a refused value it is %v, want %v", got, want)
	}
	// Values that changed places are other values.
	edited.Change(15, []etcd.Change{put("ports/tcp/20022", "10.0.0.1:23", 15), put("ports/tcp/20023", "10.0.0.1:22", 15)})
	if edited.Fingerprint() == want {
		t.Error("values that changed places have the same one")
	}
	rand.Shuffle(len(kvs), func(i, k int) { kvs[i], kvs[k] = kvs[k], kvs[i] })
	edited.Load(16, kvs)
	if got := edited.Fingerprint(); got != want {
		t.Errorf("after a load it is %v, want %v", got, want)
	}
	edited.Load(17, nil)
	if got := edited.Fingerprint(); got != 0 {
		t.Errorf("with nothing in force it is %v", got)
	}
}
