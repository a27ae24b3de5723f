"""The log on Kafka: aiokafka for every role, a Faust worker for the frames of the engine."""
