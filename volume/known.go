package volume

import (
	"container/list"
	"sync"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring"
)

// maxKnown bounds how many data keys are remembered beside those of the volume itself. Files that are open need no data key any more, so one that is forgotten costs
// another unwrap when a file under it is opened again.
const maxKnown = 1024

// A hidden is a data key inside other values: no verb of fmt looks into a function.
type hidden func() keyring.DataKey

func hide(dk keyring.DataKey) hidden { return func() keyring.DataKey { return dk } }

// known are the data keys that were unwrapped, each under an ID that was found to be its: the volume's own, and of the others those that were used last. A key that falls out is not overwritten, since somebody may be using it.
type known struct {
	mu     sync.Mutex
	own    map[header.ID]hidden        // guarded by mu
	others map[header.ID]*list.Element // of recent; guarded by mu
	recent list.List                   // of otherKey, the last used in front; guarded by mu
}

type otherKey struct {
	id header.ID
	dk hidden
}

func newKnown() *known {
	return &known{own: make(map[header.ID]hidden), others: make(map[header.ID]*list.Element)}
}

// get returns a data key, nil if it is not known.
func (k *known) get(id header.ID) keyring.DataKey {
	k.mu.Lock()
	defer k.mu.Unlock()
	if dk := k.own[id]; dk != nil {
		return dk()
	}
	if e := k.others[id]; e != nil {
		k.recent.MoveToFront(e)
		return e.Value.(otherKey).dk()
	}
	return nil
}

// keep remembers one of the volume's own data keys for good.
func (k *known) keep(id header.ID, dk keyring.DataKey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.own[id] = hide(dk)
}

// add remembers a data key for a while.
func (k *known) add(id header.ID, dk keyring.DataKey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.own[id] != nil || k.others[id] != nil {
		return
	}
	k.others[id] = k.recent.PushFront(otherKey{id, hide(dk)})
	if k.recent.Len() > maxKnown {
		delete(k.others, k.recent.Remove(k.recent.Back()).(otherKey).id)
	}
}

// wipe overwrites and forgets all of them.
func (k *known) wipe() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, dk := range k.own {
		dk().Wipe()
	}
	for e := k.recent.Front(); e != nil; e = e.Next() {
		e.Value.(otherKey).dk().Wipe()
	}
	clear(k.own)
	clear(k.others)
	k.recent.Init()
}
