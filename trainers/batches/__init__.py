"""From rows to tensors: token trees and micro-batches."""
