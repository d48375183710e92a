package volume

import (
	"container/list"
	"sync"
	"sync/atomic"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring"
)

// maxKnown is how many data keys are kept, and how many more are remembered for a while. Files that are open need no data key any more, so one that is forgotten costs
// another unwrap when a file under it is opened again.
const maxKnown = 1024

// A hidden is a data key inside other values: no verb of fmt looks into a function.
type hidden func() keyring.DataKey

func hide(dk keyring.DataKey) hidden { return func() keyring.DataKey { return dk } }

// known are the data keys that were unwrapped, each under an ID that was found to be its: the volume's own, the first of the others, and of those that came later the ones that were used last. A key that falls out is not overwritten, since
// somebody may be using it.
type known struct {
	mu      sync.Mutex
	kept    map[header.ID]hidden        // guarded by mu
	others  map[header.ID]*list.Element // of recent; guarded by mu
	recent  list.List                   // of otherKey, the last used in front; guarded by mu
	forgets atomic.Bool                 // not all are kept
}

type otherKey struct {
	id header.ID
	dk hidden
}

func newKnown() *known {
	return &known{kept: make(map[header.ID]hidden), others: make(map[header.ID]*list.Element)}
}

// get returns a data key, nil if it is not known.
func (k *known) get(id header.ID) keyring.DataKey {
	k.mu.Lock()
	defer k.mu.Unlock()
	if dk := k.kept[id]; dk != nil {
		return dk()
	}
	if e := k.others[id]; e != nil {
		k.recent.MoveToFront(e)
		return e.Value.(otherKey).dk()
	}
	return nil
}

// keep remembers a data key for good.
func (k *known) keep(id header.ID, dk keyring.DataKey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.kept[id] = hide(dk)
}

// add remembers a data key that is not the volume's own, for good if few are.
func (k *known) add(id header.ID, dk keyring.DataKey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.kept[id] != nil || k.others[id] != nil {
		return
	}
	if len(k.kept) < maxKnown {
		k.kept[id] = hide(dk)
		return
	}
	k.forgets.Store(true)
	k.others[id] = k.recent.PushFront(otherKey{id, hide(dk)})
	if k.recent.Len() > maxKnown {
		delete(k.others, k.recent.Remove(k.recent.Back()).(otherKey).id)
	}
}

// wipe overwrites and forgets all of them.
func (k *known) wipe() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, dk := range k.kept {
		dk().Wipe()
	}
	for e := k.recent.Front(); e != nil; e = e.Next() {
		e.Value.(otherKey).dk().Wipe()
	}
	clear(k.kept)
	clear(k.others)
	k.recent.Init()
}
