"""The labellers of other data engines, behind the interface of the adapter: images in, detections out."""
